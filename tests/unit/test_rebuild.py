"""What a rebuild decides without a machine: is there a database, did everything come back."""

from __future__ import annotations

import pytest

from minipc import config
from minipc.errors import RefusedError
from minipc.inventory import Target
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
    (told,) = begin(machine, IDENTIFIER)
    assert machine.done == ["systemctl", "install"]
    assert "/var/lib/postgresql/17/main.aside-" in told


def test_a_rebuild_that_was_cut_off_goes_on_and_moves_nothing_aside(begin):
    """The restored database has the identifier of the one that was moved aside."""
    machine = Machine(database=IDENTIFIER, unfinished=True)
    assert "it goes on" in begin(machine, IDENTIFIER)[0]
    assert machine.done == []
