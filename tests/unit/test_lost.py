"""A stolen machine, and a lost laptop: what they knew is renewed, and what only a person can do is listed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from minipc.cli import recovery
from minipc.cli.secrets import secrets
from minipc.config import load
from minipc.core.errors import ConfigError, CouldNotVerifyError, RefusedError, SecretError
from minipc.remote import inventory, operator_lock
from minipc.secrets import catalogue, ed25519, generate
from minipc.secrets.age import AgeStore
from minipc.vpn.keys import public_key
from playbooks import lost, phases
from tests.unit.deploy_run import OFFSITE

PEERS = [
    {"name": name, "public_key": key, "allowed_ips": [address]}
    for name, key, address in (
        ("laptop", "ELkw1XE9cpZsDfB9Av4qurcoyEw+XZ6qB8SoUIVTo1M=", "10.99.0.2/32"),
        ("phone", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=", "10.99.0.3/32"),
    )
]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b you@laptop"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A mini PC with an off-site host, whose commands are noted, and a store with all secrets."""
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))
    settings = load("lab", backups_offsite=OFFSITE, host_operator_keys=[KEY], vpn_peers=PEERS)
    mini = SimpleNamespace(alias="mini", settings=settings, data={}, role="mini")
    offsite = SimpleNamespace(alias=OFFSITE, settings=settings, data={}, role="offsite")
    store = AgeStore(tmp_path / "lab.age", tmp_path / "age.key")
    store.prepare()
    entries = [*catalogue.whole(settings), *catalogue.needed("k3s", ["ghcr"])]
    generate.fill(store, entries)
    store.set_many({catalogue.DNS_TOKEN: "hunter2", "k3s.registry.ghcr": "hunter2"})
    done: list[tuple[str, str]] = []
    for module in (lost, inventory):
        monkeypatch.setattr(module, "the_target", lambda *_: mini)
    monkeypatch.setattr(operator_lock, "held", lambda *_: nullcontext())
    monkeypatch.setattr(lost, "offsite_target", lambda *_: offsite)
    monkeypatch.setattr(lost, "on", lambda target, command, **_: done.append((target.alias, command)) or "")
    monkeypatch.setattr(lost, "converge", lambda _, files, *, limit, **__: done.append((limit, " ".join(files))))
    monkeypatch.setattr(lost, "write_peers", lambda peers: done.append(("peers", ",".join(p["name"] for p in peers))))
    monkeypatch.setattr(lost, "read_peers", lambda: PEERS)
    for module in (lost, generate):
        monkeypatch.setattr(module, "open_store", lambda *_: store)
    monkeypatch.setattr(
        lost, "without", lambda _environment, _data, name, peers: [each for each in peers if each["name"] != name]
    )
    return SimpleNamespace(store=store, done=done, settings=settings, values=lambda: store.read(store.names()))


def call(*arguments):
    done = CliRunner().invoke(getattr(recovery, arguments[0]), [*arguments[1:], "--inventory", "lab"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def changed(world, before):
    after = world.values()
    return {name for name in before if after[name] != before[name]}


def test_everything_that_a_stolen_machine_knew_is_renewed_before_it_is_locked_out(world):
    before = world.values()
    said = call("stolen")
    generated = {each.name for each in catalogue.whole(world.settings) if each.generate}
    kept = {*catalogue.BACKUP_PASSPHRASES, "release.signing_key", "offsite.sftp_host_key", "offsite.tls_key"}
    # It was never on the mini PC.
    kept |= {"watcher.alertmanager_password"}
    assert changed(world, before) == generated - kept
    assert {
        "offsite.rest_password",
        "watcher.password",
        "watcher.client_key",
        "vpn.private_key",
        "k3s.token",
    } <= changed(world, before)
    first, (where, files), last = world.done
    assert last == (OFFSITE, phases.LIST_REVOKED)
    assert first == (OFFSITE, "true")
    assert where == OFFSITE
    assert "deploys/offsite.py" in files
    assert "deploys/watcher.py" in files
    assert "dns.cloudflare_token" in said
    assert public_key(world.store.get("vpn.private_key")) in said
    assert "minipc stolen --repositories" in said
    assert not [name for name, value in world.values().items() if value.reveal() in said]


def test_if_the_off_site_host_does_not_answer_nothing_is_renewed(world, monkeypatch):
    def unreachable(*_, **__):
        raise CouldNotVerifyError("cannot be reached", "try again")

    monkeypatch.setattr(lost, "on", unreachable)
    before = world.values()
    with pytest.raises(CouldNotVerifyError):
        call("stolen")
    assert changed(world, before) == set()


def test_new_passphrases_get_new_repositories_and_the_old_ones_stay_aside(world):
    before = world.values()
    call("stolen", "--repositories")
    assert changed(world, before) == set(catalogue.BACKUP_PASSPHRASES)
    where = [alias for alias, _ in world.done]
    assert where == [OFFSITE, "mini", OFFSITE, "mini", "mini", OFFSITE, "mini"]
    commands = "\n".join(command for _, command in world.done)
    assert "TIME" not in commands
    assert "mv -T sftp/pgbackrest copies/aside-" in commands
    assert "offsite-copy --accept" in commands
    assert "caddy" in world.done[-1][1]


@pytest.fixture
def in_a_bucket(world, monkeypatch):
    """The same without an off-site host: the backups are in a bucket."""
    s3 = {"endpoint": "s3.example.org", "bucket": "backups", "region": "eu-1"}
    settings = load("lab", offsite_kind="s3", offsite_s3=s3, host_operator_keys=[KEY], vpn_peers=PEERS)
    mini = SimpleNamespace(alias="mini", settings=settings, data={}, role="mini")
    monkeypatch.setattr(lost, "the_target", lambda *_: mini)
    monkeypatch.setattr(lost, "offsite_target", lambda *_: None)
    world.store.set_many({catalogue.S3_ACCESS_KEY: "hunter2", catalogue.S3_SECRET_KEY: "hunter2"})
    return world


def test_a_thief_of_a_buckets_key_is_locked_out_by_a_person_and_nobody_claims_otherwise(in_a_bucket):
    said = call("stolen")
    assert "FIRST: delete the bucket's key at its provider" in said
    assert "offsite.s3_secret_key" in said
    assert "locked out" not in said
    assert in_a_bucket.done == []


@pytest.fixture
def in_a_storage_box(in_a_bucket, monkeypatch):
    """The same with a storage box."""
    sftp = {"host": "box.example.org", "port": 23, "user": "u1", "path": "/home/minipc", "host_keys": [KEY]}
    settings = load("lab", offsite_kind="sftp", offsite_sftp=sftp, host_operator_keys=[KEY], vpn_peers=PEERS)
    mini = SimpleNamespace(alias="mini", settings=settings, data={}, role="mini")
    monkeypatch.setattr(lost, "the_target", lambda *_: mini)
    return in_a_bucket


def test_after_a_theft_a_person_puts_the_new_key_into_the_storage_box(in_a_storage_box):
    before = public_key_of(in_a_storage_box)
    said = call("stolen")
    assert "FIRST: in the storage box, remove every authorized key that is not yours" in said
    assert public_key_of(in_a_storage_box) in said
    assert before not in said
    assert "locked out" not in said
    assert in_a_storage_box.done == []


def public_key_of(world):
    return ed25519.public_key(world.store.get(catalogue.SFTP_KEY))


def test_new_passphrases_go_into_a_new_bucket_only(in_a_bucket, monkeypatch):
    def used(_):
        raise ConfigError("the bucket backups contains pgbackrest/", "create a new bucket")

    monkeypatch.setattr(lost.preflight, "demand_empty", used)
    before = in_a_bucket.values()
    with pytest.raises(ConfigError):
        call("stolen", "--repositories")
    assert changed(in_a_bucket, before) == set()
    monkeypatch.setattr(lost.preflight, "demand_empty", lambda _: None)
    said = call("stolen", "--repositories")
    assert changed(in_a_bucket, before) == set(catalogue.BACKUP_PASSPHRASES)
    assert {alias for alias, _ in in_a_bucket.done} == {"mini"}
    assert "remove what the old passphrases open: the old bucket" in said


def test_a_lost_laptop_opens_nothing_any_more(world):
    before, old = world.values(), world.store.key_path.read_bytes()
    said = call("laptop_lost", "laptop")
    renewed = changed(world, before)
    assert renewed == {each.name for each in catalogue.whole(world.settings) if each.generate} - catalogue.BOUND.keys()
    assert world.done == [("peers", "phone")]
    world.store.key_path.write_bytes(old)
    with pytest.raises(SecretError, match="not encrypted for the key"):
        world.values()
    for each in ("you@laptop", "dns.cloudflare_token", "secrets_age_recipients", "minipc stolen --repositories"):
        assert each in said
    assert "the new age key has no passphrase yet" in said


def test_a_lost_laptop_knew_the_passphrase_of_the_disk(world, monkeypatch):
    assert "host.disk_passphrase" not in call("laptop_lost", "laptop")
    settings = load("lab", host_operator_keys=[KEY], vpn_peers=PEERS, host_disk_encryption="tpm2")
    mini = SimpleNamespace(alias="mini", settings=settings, data={}, role="mini")
    monkeypatch.setattr(lost, "the_target", lambda *_: mini)
    assert "host.disk_passphrase, which the laptop knew" in call("laptop_lost", "laptop")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_new_age_key_that_is_interrupted_loses_nothing(world, monkeypatch, at):
    from minipc.secrets import age, key_file

    before, real, count = world.values(), age.write_private, []

    def write(path, content):
        count.append(path)
        if len(count) == at:
            raise SecretError("the disk is full", "")
        real(path, content)

    monkeypatch.setattr(age, "write_private", write)
    monkeypatch.setattr(key_file, "write_private", write)
    with pytest.raises(SecretError):
        world.store.rekey()
    monkeypatch.setattr(age, "write_private", real)
    assert world.values() == before
    world.store.rekey()
    assert world.values() == before
    assert len(age.read_identities(world.store.key_path)) == 1


@pytest.mark.parametrize("name", sorted(catalogue.BOUND))
def test_what_data_depends_on_is_not_renewed_alone(world, name):
    before = world.values()
    done = CliRunner().invoke(secrets, ["renew", name, "--inventory", "lab"])
    assert isinstance(done.exception, RefusedError)
    assert changed(world, before) == set()


def test_each_credential_is_renewed_by_a_command_or_set_by_one(world):
    for entry in [*catalogue.whole(world.settings), *catalogue.needed("k3s", ["ghcr"])]:
        if entry.generate and entry.name not in catalogue.BOUND:
            before = world.store.get(entry.name)
            generate.renew("lab", [entry.name])
            assert world.store.get(entry.name) != before, entry.name
