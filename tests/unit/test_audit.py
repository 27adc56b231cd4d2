"""The table of credentials: complete, from the catalogue, and each check that it names exists."""

from __future__ import annotations

import re

from click.testing import CliRunner

from minipc.cli.secrets import audit as command
from minipc.config import load
from minipc.core.paths import ROOT
from minipc.secrets.age import AgeStore
from minipc.secrets.catalogue import needed, whole
from playbooks import audit

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ8kVxJwYxHbTb1rXQkq0nJX1oJ4l0Yb1nJX1oJ4l0Y you@laptop"


def test_every_secret_and_every_key_of_a_person_is_in_the_table():
    settings = load("lab", host_operator_keys=[KEY])
    entries = whole(settings)
    found = {each.name: each for each in audit.credentials(settings, {each.name: "2026-01-02" for each in entries})}
    assert {each.name for each in entries} <= found.keys()
    assert {"SSH key you@laptop", "age key"} <= found.keys()
    assert all(each.allows and each.where for each in found.values())
    assert found["release.signing_key"].where == "controller only"
    assert found["backups.sftp_key"].tested == "verify offsite"


def test_a_secret_that_nothing_uses_is_shown_as_such():
    found = audit.credentials(load("lab", host_operator_keys=[]), {"shop.OLD_KEY": audit.UNKNOWN})
    assert "unused" in next(each.allows for each in found if each.name == "shop.OLD_KEY")


def test_each_check_that_is_named_exists():
    entries = [*whole(load("lab", host_operator_keys=[])), *needed("k3s", ["ghcr"])]
    for name in {each.tested for each in entries if each.tested}:
        module, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / f"tests/verify/{module}.py").read_text(), re.M), name
    tested = [each.name for each in entries if each.tested]
    assert len(tested) > len(entries) / 2


def test_a_value_leaves_its_day_and_nothing_else(tmp_path, monkeypatch):
    store = AgeStore(tmp_path / "lab.age", tmp_path / "age.key")
    store.prepare()
    store.set_many({"redis.password.monitoring": "hunter2"})
    first = store.renewed()
    store.set_many({"redis.password.monitoring": "other", "k3s.token": "hunter2"}, keep_existing=True)
    assert first.keys() == {"redis.password.monitoring"}
    assert store.renewed().keys() == {"redis.password.monitoring", "k3s.token"}
    monkeypatch.setattr(store, "renewed", lambda: {"k3s.token": "2020-01-01"})
    monkeypatch.setattr(audit, "open_store", lambda *_: store)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(command, ["--inventory", "lab"])
    assert done.exit_code == 0, done.output
    assert re.search(r"k3s\.token .* 2020-01-01", done.output)
    assert "hunter2" not in done.output
    assert "without a passphrase" in " ".join(done.output.split())
