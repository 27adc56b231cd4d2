"""What a rebuild decides without a machine: is there a database, did everything come back."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from minipc import config
from minipc.errors import MinipcError, RefusedError
from minipc.inventory import Target
from minipc.keys import public_key
from minipc.run import Run
from minipc.secrets import Secret
from minipc.secrets.generate import ssh_private_key
from playbooks import rebuild

IDENTIFIER = "7574901234567890123"


class Machine:
    """Answers what `begin` asks, and remembers what it was told to do."""

    def __init__(self, *, database: str = "", unfinished: bool = False) -> None:
        self.database = database
        self.unfinished = unfinished
        self.done: list[str] = []

    def on(self, _target: Target, command: str, **_: object) -> str:
        if "|| echo there" in command:
            return "there" if self.unfinished else ""
        if "PG_VERSION" in command:
            return self.database
        self.done.append(command.split()[0])
        return ""


@pytest.fixture
def begin(monkeypatch):
    def run(machine: Machine, replace: str = "") -> list[str]:
        monkeypatch.setattr(rebuild, "on", machine.on)
        told: list[str] = []
        rebuild.begin(Target("mini", {}, config.load("lab")), replace, told.append)
        return told

    return run


def test_a_blank_machine_is_marked(begin):
    machine = Machine()
    begin(machine)
    assert machine.done == ["install"]


@pytest.mark.parametrize("typed", ["", "7574901234567890124", "yes"])
def test_a_database_is_refused_unless_its_identifier_is_typed(begin, typed):
    machine = Machine(database=IDENTIFIER)
    with pytest.raises(RefusedError, match=IDENTIFIER):
        begin(machine, typed)
    assert machine.done == []


def test_with_its_identifier_it_is_moved_aside(begin):
    machine = Machine(database=IDENTIFIER)
    shut, aside = begin(machine, IDENTIFIER)
    assert machine.done == ["set", "systemctl", "install"], "the door first: nobody writes into what is not verified"
    assert "the public door is shut" in shut
    assert "/var/lib/postgresql/17/main.aside-" in aside


def test_what_writes_is_stopped_and_stays_so_after_a_reboot(tmp_path):
    """The script against a systemd that knows some units; K3s is not there."""
    units = "caddy.service|workload-worker@push.service|minipc-heartbeat.timer"
    program = tmp_path / "systemctl"
    program.write_text(f"""#!/bin/sh
case "$1" in
--quiet) exit 3;;
list-units) shift; for pattern; do echo "{units}" | tr '|' '\\n' | while read -r unit; do
    case "$unit" in $pattern) echo "$unit loaded active";; esac; done; done;;
*) echo "$@" >> {tmp_path}/done;;
esac
""")
    program.chmod(0o755)
    subprocess.run(["sh", "-c", rebuild.SHUT_THE_DOOR], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    assert (tmp_path / "done").read_text().splitlines() == [
        "disable --quiet --now caddy.service",
        "disable --quiet --now workload-worker@push.service minipc-heartbeat.timer",
    ]


def test_a_rebuild_that_was_cut_off_goes_on_and_moves_nothing_aside(begin):
    """The restored database has the identifier of the one that was moved aside."""
    machine = Machine(database=IDENTIFIER, unfinished=True)
    assert "it goes on" in begin(machine, IDENTIFIER)[0]
    assert machine.done == []


@pytest.fixture
def fence(monkeypatch, tmp_path):
    """Runs `fence` on a machine whose mark holds something; returns what was done, and what the mark holds then."""
    settings = config.load("lab")
    keys = {"new": ssh_private_key(), "own": ssh_private_key()}

    def run(mark: str | None) -> tuple[list[str], str | None]:
        done: list[str] = []
        own = public_key(Secret("backups.sftp_key", keys["own"]))
        state = {"store": keys["own"], "mark": own if mark == "own" else mark}

        def on(_: Target, command: str, stdin: str = "", **__: object) -> str:
            if command.startswith("cat"):
                return state["mark"] or ""
            if "cat >" in command and state["mark"] is not None:
                state["mark"] = stdin.strip()
            return ""

        def renew(*_: object) -> None:
            done.append("renew")
            state["store"] = keys["new"]

        store = SimpleNamespace(get=lambda name: Secret(name, state["store"]))
        monkeypatch.setattr("minipc.run.REPORTS", tmp_path)
        monkeypatch.setattr(rebuild, "on", on)
        monkeypatch.setattr(rebuild, "renew", renew)
        monkeypatch.setattr(rebuild, "open_store", lambda _: store)
        monkeypatch.setattr(rebuild, "converge", lambda *_, **__: done.append("converge"))
        monkeypatch.setattr(rebuild, "offsite_target", lambda *_: Target("offsite", {}, settings))
        rebuild.fence(Run("rebuild"), "lab", Target("mini", {}, settings))
        told = {public_key(Secret("backups.sftp_key", key)): name for name, key in keys.items()}
        return done, told.get(state["mark"] or "", state["mark"])

    return run


def test_the_fence_makes_a_new_key_and_notes_it(fence):
    assert fence("") == (["renew", "converge"], "new")


def test_a_resumed_rebuild_keeps_the_key_that_it_made(fence):
    """Another one would revoke the one with which the machine is reading its WAL."""
    assert fence("own") == (["converge"], "own")


def test_the_key_of_the_lost_machine_is_never_kept(fence):
    """The rebuild was cut off before the mark had the new one, or goes on from a computer that has not got it."""
    assert fence("ssh-ed25519 another") == (["renew", "converge"], "new")


def test_a_machine_that_is_not_being_rebuilt_gets_no_mark(fence):
    assert fence(None) == (["renew", "converge"], None)


DAY = 86400.0


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr("minipc.run.REPORTS", tmp_path)
    return Run("rebuild")


def test_data_within_the_budget_is_the_rpos_bound(run):
    rebuild.judge_age(run, 90.0, DAY, accept=False)
    assert (run.rpo_seconds, run.rpo_budget_seconds) == (90.0, DAY)


@pytest.mark.parametrize(("age", "told"), [(7 * DAY, "the last heartbeat was 168 h"), (None, "no heartbeat came back")])
def test_old_data_is_not_let_in_unless_it_is_accepted(run, age, told):
    with pytest.raises(MinipcError, match=f"{told}.*--accept-old-data"):
        rebuild.judge_age(run, age, DAY, accept=False)
    rebuild.judge_age(run, age, DAY, accept=True)
    assert (run.rpo_seconds, run.rpo_budget_seconds) == (age, None), "known, and no longer judged"


def test_the_age_is_that_of_the_lost_machines_last_heartbeat(monkeypatch):
    """Not of those that the new one has added since."""
    asked = []
    monkeypatch.setattr(rebuild, "on", lambda *_: '{"at": 1000.5, "label": "F", "seconds": 1}')
    monkeypatch.setattr(rebuild, "query", lambda target, database, sql: asked.append(sql) or "12.5")
    monkeypatch.setattr(rebuild, "_ask_class", lambda *_: None)
    assert rebuild.restored(Target("mini", {}, config.load("lab"))).age == 12.5
    assert "WHERE at <= to_timestamp(1000.5)" in asked[-1]
