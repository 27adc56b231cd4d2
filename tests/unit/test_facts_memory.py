"""Facts answered from memory: never after something was run on the machine."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
from pyinfra import context
from pyinfra.api import Config, FactBase, Host, Inventory, State
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.operation import OperationMeta
from pyinfra.api.state import StateOperationHostData, StateStage
from pyinfra.connectors.util import CommandOutput

from minipc.pyinfra_ext.facts import systemd
from minipc.pyinfra_ext.facts.memory import announce, announced, recall, remember_facts
from minipc.pyinfra_ext.facts.systemd import UnitStates


class Uptime(FactBase[str]):
    """A fact; each time it is asked its answer is another one."""

    def command(self, of: str = "") -> str:
        return f"uptime {of}"


class Machine:
    """A state with two hosts, and how often the first one was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = State(Inventory((["m", "other"], {})), Config())
        self.state.set_stage(StateStage.Prepare)
        self.state.check_for_changes = False
        self.asked = 0
        monkeypatch.setattr(Host, "get_fact", self.get_fact)

    def get_fact(self, fact: type, **arguments: object) -> str:
        self.asked += 1
        return f"answer {self.asked}"

    def recall(self, host: str = "m", **arguments: str) -> str:
        with context.ctx_host.use(self.state.inventory.get_host(host)):
            return recall(Uptime, **arguments)

    def ended(self, host: str, commands: list[str]) -> None:
        """An operation ended after these commands."""
        meta = OperationMeta("op", is_change=None)
        meta.set_complete(True, commands, CommandOutput([]))
        data = StateOperationHostData(lambda: iter(()), {}, meta)
        self.state.ops[self.state.inventory.get_host(host)]["op"] = data
        self.state.trigger_callbacks("operation_end", "op")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(monkeypatch)
    remember_facts(machine.state)
    remember_facts(machine.state)
    return machine


def test_the_same_fact_is_asked_once(machine):
    assert machine.recall() == machine.recall() == "answer 1"
    assert machine.recall(of="x") == "answer 2"
    assert machine.recall("other") == "answer 3"
    machine.ended("m", [])
    assert machine.recall() == "answer 1"


def test_it_is_asked_again_once_something_was_changed(machine):
    before, other = machine.recall(), machine.recall("other")
    machine.ended("m", ["apt-get install x"])
    assert machine.recall() != before
    assert machine.recall("other") == other


def test_what_the_plan_was_made_from_is_asked_again_before_it_is_carried_out(machine):
    before = machine.recall()
    machine.state.set_stage(StateStage.Execute)
    assert machine.recall() != before


def test_nothing_is_kept_unless_changes_are_noticed(monkeypatch):
    machine = Machine(monkeypatch)
    assert machine.recall() != machine.recall()


def test_announcements_are_kept_apart_by_machine_and_fact():
    one, other = SimpleNamespace(name="one"), SimpleNamespace(name="other")
    announce(one, UnitStates, ["b.service", "a.service"])
    announce(one, UnitStates, ["b.service", "c.service"])
    announce(other, UnitStates, ["d.service"])
    assert announced(one, UnitStates) == ["b.service", "a.service", "c.service"]
    assert announced(other, UnitStates) == ["d.service"]
    assert announced(one, int) == []


OUTPUT = """\
Type=notify
ActiveState=active

ActiveState=inactive
--stamps--
r1 l1

""".splitlines()


def test_states_of_several_units_are_told_apart():
    fact = UnitStates()
    fact.command(["a.service", "b@x.timer"])
    assert fact.process(OUTPUT) == {
        "a.service": {"Type": "notify", "ActiveState": "active", "Stamp": "r1 l1"},
        "b@x.timer": {"ActiveState": "inactive", "Stamp": ""},
    }


def test_a_missing_unit_is_never_mistaken_for_its_neighbour():
    fact = UnitStates()
    fact.command(["a.service", "b.service", "c.service"])
    with pytest.raises(FactProcessError, match="returned 2 units, expected 3"):
        fact.process(OUTPUT)


def test_each_unit_gets_its_own_stamp(tmp_path, monkeypatch):
    """The shell code itself, with the machine's folder and systemctl replaced."""
    monkeypatch.setattr(systemd, "STAMPS", str(tmp_path))
    (tmp_path / "b@x.timer").write_text("r1 l1\n")
    units = ["a.service", "b@x.timer"]
    fact = UnitStates()
    script = f"systemctl() {{ printf 'Type=x\\n\\nType=y\\n'; }}; {fact.command(units)}"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10, check=True).stdout
    assert fact.process(said.splitlines()) == {
        "a.service": {"Type": "x", "Stamp": ""},
        "b@x.timer": {"Type": "y", "Stamp": "r1 l1"},
    }
