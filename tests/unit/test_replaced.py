"""A machine that was replaced stops serving; one that does not know it, or has a new key, serves."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from minipc_machine import replaced, schema
from minipc_machine.program import FailedError
from minipc_machine.replaced import ReplacedSettings

OWN, OTHER = "ssh-ed25519 AAAAOWN", "ssh-ed25519 AAAAOTHER"
LISTED = """\
caddy.service         loaded    active   running Caddy
k3s.service           not-found inactive dead    k3s.service
minipc-shop-web.service loaded  active   running Shop
"""


class Machine:
    """A machine on which the program runs: what the off-site host shows to it, and the commands that it ran."""

    def __init__(self, folder, monkeypatch):
        self.shown: str | None = ""
        self.ran: list[list[str]] = []
        self.network = ""
        self.folder = folder
        for name in ("SETTINGS", "MARK", "MESSAGE", "REBUILDING"):
            monkeypatch.setattr(replaced, name, folder / name.lower())
        monkeypatch.setattr(replaced, "PROC", folder / "proc")
        monkeypatch.setattr(replaced, "run", self._run)
        monkeypatch.setattr(replaced, "write_metrics", lambda _, gauges: setattr(self, "metric", gauges[0].samples))

    def look(self, *arguments, key=OWN):
        own = ReplacedSettings(key, "192.0.2.1", 2222, [22], 51820, ["shop"])
        replaced.SETTINGS.write_text(schema.dump(own))
        self.ran.clear()
        assert replaced.main(list(arguments)) == 0

    def _run(self, argv, *_, stdin="", **__):
        if argv[0] == "sh":
            if self.shown is None:
                raise FailedError("ssh: did not end within 15 s")
            return self.shown
        if argv[0] == "nft":
            self.network = stdin
        self.ran.append(list(argv))
        return LISTED if argv[1].startswith("list-unit") else ""

    @property
    def verbs(self):
        return [argv[1] for argv in self.ran if argv[0] == "systemctl"]

    @property
    def is_closed(self):
        return "policy drop" in self.network


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def _replace(machine):
    machine.shown = f"{OTHER}\n{OWN}\r\nfenced@192.0.2.1: Permission denied (publickey).\n"
    machine.look()


def test_a_machine_whose_key_a_rebuild_revoked_stops_serving(machine):
    _replace(machine)
    assert machine.is_closed
    assert machine.ran[-1] == ["systemctl", "stop", "--", "caddy.service", "minipc-shop-web.service"]
    assert "minipc-shop-*" in machine.ran[-2]
    assert "minipc apply" in replaced.MESSAGE.read_text()
    assert machine.metric == [({}, True)]


@pytest.mark.parametrize(
    "shown",
    [
        None,
        "",
        "ssh: connect to host 192.0.2.1 port 2222: Connection refused\n",
        "fenced@192.0.2.1: Permission denied (publickey).\n",
        f"{OTHER}\nfenced@192.0.2.1: Permission denied (publickey).\n",
        # What somebody in between says before his host key is refused.
        f"kex_exchange_identification: banner line 0: {OWN}\nHost key verification failed.\n",
    ],
)
def test_without_proof_it_serves_on(machine, shown):
    machine.shown = shown
    machine.look()
    assert machine.ran == []
    assert not replaced.MARK.exists()
    assert machine.metric == [({}, False)]


def test_it_stays_stopped_without_the_off_site_host(machine):
    _replace(machine)
    machine.shown = None
    machine.look()
    assert machine.is_closed
    assert "stop" in machine.verbs


def test_a_new_key_lets_it_serve_again(machine):
    _replace(machine)
    machine.shown = None
    machine.look(key=OTHER)
    assert not machine.is_closed
    assert machine.ran[-1][:4] == ["systemctl", "start", "--no-block", "--"]
    assert not replaced.MARK.exists()
    assert not replaced.MESSAGE.exists()
    assert machine.metric == [({}, False)]


def test_a_person_at_the_machine_lets_it_serve_again(machine):
    _replace(machine)
    machine.look("--serve")
    assert not machine.is_closed
    assert machine.verbs[-2:] == ["start", "disable"]
    assert not replaced.MARK.exists()


def test_a_machine_that_is_being_rebuilt_does_not_ask(machine):
    replaced.REBUILDING.touch()
    _replace(machine)
    assert machine.ran == []


def test_pods_end_and_nothing_else(machine, monkeypatch):
    killed = []
    monkeypatch.setattr(replaced.os, "kill", lambda pid, _: killed.append(pid))
    for pid, group in ((10, "/system.slice/ssh.service"), (11, "/kubepods/pod1/c"), (12, "/kubepods.slice/x.scope")):
        folder = machine.folder / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "cgroup").write_text(f"0::{group}\n")
    _replace(machine)
    assert sorted(killed) == [11, 12]


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="NOT EXERCISED: needs nft and root")
def test_nft_accepts_the_rules(machine):
    _replace(machine)
    rules = machine.folder / "rules.nft"
    rules.write_text(machine.network)
    argv = ["unshare", "--net", "sh", "-c", f"nft -f {rules} && nft -f {rules} && nft list ruleset"]
    done = subprocess.run(argv, capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("NOT EXERCISED: no network namespaces here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("policy drop") == 3
