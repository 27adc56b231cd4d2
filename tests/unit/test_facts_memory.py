"""Facts answered from memory: never after something was run on the machine."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from minipc.facts import systemd
from minipc.facts.memory import announce, announced, remember_facts
from minipc.facts.systemd import UnitStates


class Machine:
    """A host whose one fact is what `command` prints; counts what reaches it."""

    name = "m"

    def __init__(self):
        self.state = SimpleNamespace(current_stage="Prepare")
        self.commands = []
        self.works = True

    def get_fact(self, command, **kwargs):
        return self.run_shell_command(command, **kwargs)

    def run_shell_command(self, command, **kwargs):
        self.commands.append(str(command))
        return self.works, SimpleNamespace(stdout=f"answer {len(self.commands)}")

    def put_file(self, *args):
        return True

    def rsync(self, *args):
        return True


@pytest.fixture
def machine():
    machine = Machine()
    remember_facts(machine)
    return machine


def test_the_same_fact_is_asked_once(machine):
    assert machine.get_fact("dpkg -l") == machine.get_fact(StringCommand("dpkg", "-l"))
    assert machine.commands == ["dpkg -l"]


@pytest.mark.parametrize(
    "change",
    [
        lambda machine: machine.run_shell_command("apt-get install x"),
        lambda machine: machine.put_file("a", "/a"),
        lambda machine: machine.rsync("a", "/a"),
    ],
)
def test_it_is_asked_again_once_something_was_changed(machine, change):
    before = machine.get_fact("dpkg -l")
    change(machine)
    assert machine.get_fact("dpkg -l") != before


def test_as_another_user_it_is_another_question(machine):
    machine.get_fact("id -un")
    machine.get_fact("id -un", _su_user="postgres")
    assert len(machine.commands) == 2


def test_what_the_plan_was_made_from_is_asked_again_before_it_is_carried_out(machine):
    machine.get_fact("dpkg -l")
    machine.state.current_stage = "Execute"
    machine.get_fact("dpkg -l")
    assert len(machine.commands) == 2


def test_a_fact_that_failed_is_asked_again(machine):
    machine.works = False
    machine.get_fact("psql")
    machine.works = True
    assert machine.get_fact("psql")[0]


def test_a_fact_that_broke_does_not_make_the_next_command_one(machine):
    with pytest.raises(TypeError):
        machine.get_fact()
    machine.run_shell_command("date")
    machine.run_shell_command("date")
    assert machine.commands == ["date", "date"]


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
    with pytest.raises(FactProcessError, match="2 units instead of 3"):
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
