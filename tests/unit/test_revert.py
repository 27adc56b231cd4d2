"""A change that nobody confirms is taken back: the program on the machine, and the operations that talk to it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from types import SimpleNamespace

import pytest
from pyinfra.api import FunctionCommand

from minipc.core import polling
from minipc.core.paths import ROOT
from minipc.pyinfra_ext.operations import files, revert
from minipc.pyinfra_ext.operations.files import Content, Directory, _install_script
from minipc.remote import ssh


@pytest.fixture
def machine(tmp_path):
    """The program with its directories moved, a systemctl that only writes down what it is told, and two files."""
    text = (ROOT / "machine/minipc_machine/shell/revert.sh").read_text()
    for old, new in (
        ("/var/lib/minipc/revert", tmp_path / "state"),
        ("/run/minipc-revert.lock", tmp_path / "lock"),
        ("/proc/sys/kernel/random/boot_id", tmp_path / "boot_id"),
    ):
        assert old in text
        text = text.replace(old, str(new))
    (tmp_path / "boot_id").write_text("first\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/told\n")
    (tmp_path / "bin/systemctl").chmod(0o755)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/old").write_text("good")
    (tmp_path / "etc/old").chmod(0o640)
    (tmp_path / "revert").write_text(text)

    def run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        argv = ("sh", str(tmp_path / "revert"), *argv)
        return subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, check=check)

    def change() -> None:
        run("keep", "x", str(tmp_path / "etc/old"), str(tmp_path / "etc/new"))
        (tmp_path / "etc/old").unlink()  # as `mv` does: a file of its own
        (tmp_path / "etc/old").write_text("bad")
        (tmp_path / "etc/new").write_text("bad")

    run.change = change
    run.told = lambda: (tmp_path / "told").read_text() if (tmp_path / "told").exists() else ""
    run.etc = tmp_path / "etc"
    run.state = tmp_path / "state"
    run.boot_id = tmp_path / "boot_id"
    return run


def good(machine) -> bool:
    old, new = machine.etc / "old", machine.etc / "new"
    return old.read_text() == "good" and old.stat().st_mode & 0o777 == 0o640 and not new.exists()


def test_what_is_not_confirmed_is_as_it_was(machine):
    machine.change()
    machine("arm", "x", f"echo again > {machine.etc}/undone")
    assert "restart minipc-revert@x.timer" in machine.told()
    assert not good(machine)
    machine("undo", "x")
    assert good(machine)
    assert (machine.etc / "undone").read_text() == "again\n"
    late = machine("confirm", "x", check=False)
    assert late.returncode == 1
    assert "too late" in late.stderr


def test_the_clock_runs_before_the_first_file_is_replaced(machine):
    """Who may log in takes effect at once: a controller that dies before `arm` has locked everybody out."""
    machine("keep", "x", str(machine.etc / "old"))
    assert machine.told() == "restart minipc-revert@x.timer\n"
    (machine.etc / "old").write_text("bad")
    machine("undo", "x")
    assert good(machine)


def test_without_a_clock_no_file_is_remembered_as_replaced(machine):
    """`keep` fails, and with it the script that would have replaced the files."""
    (machine.etc.parent / "bin/systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert machine("keep", "x", str(machine.etc / "old"), check=False).returncode != 0


def test_what_is_confirmed_stays(machine):
    machine.change()
    machine("arm", "x", "false")
    machine("confirm", "x")
    assert "stop minipc-revert@x.timer" in machine.told()
    machine("undo", "x")
    machine("boot")
    assert not good(machine)
    assert list(machine.state.iterdir()) == []


def test_of_two_unconfirmed_changes_both_are_taken_back(machine):
    machine.change()
    machine.change()  # keeps what is bad already
    machine("undo", "x")
    assert good(machine)


def test_after_a_power_cut_it_is_taken_back_before_anything_starts(machine):
    machine.change()
    machine("arm", "x", f"touch {machine.etc}/undone")
    machine("boot")
    assert not good(machine), "the same boot: a converge is at it"
    machine.boot_id.write_text("second\n")
    machine("boot")
    assert good(machine)
    assert not (machine.etc / "undone").exists(), "services have not started yet: they will read the files"
    assert machine.told().endswith("daemon-reload\n"), "units were read already, as nobody confirmed them"
    assert list(machine.state.iterdir()) == []


def test_at_a_boot_with_nothing_to_take_back_units_are_not_read_again(machine):
    machine("boot")
    assert machine.told() == ""


@pytest.mark.parametrize(
    ("name", "change", "paths"),
    [
        ("vpn", "vpn", {"minipc-vpn.service", "vpn-up", "CONF"}),
        ("firewall", "firewall", {"minipc-firewall.service.j2", "RULES"}),
        ("host", "sshd", {"authorized_keys", "sudoers.d/operator", "10-minipc.conf"}),
    ],
)
def test_whatever_decides_who_gets_in_has_to_be_confirmed(name, change, paths):
    """Unit files, too: `place` without `change` remembers nothing, and the revert has nothing to put back."""
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / f"deploys/{name}.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "place"
    ]
    confirmed = [each for each in calls if any(ast.unparse(word) == f"change='{change}'" for word in each.keywords)]
    placed = " ".join(map(ast.unparse, confirmed))
    assert [path for path in paths if path not in placed] == []


@pytest.mark.parametrize("name", ["vpn", "firewall"])
def test_units_that_were_put_back_are_read_again(name):
    text = (ROOT / f"deploys/{name}.py").read_text()
    (undo,) = re.findall(r"^UNDO = .*?^\)|^UNDO = .*?$", text, re.M | re.S)
    assert "systemctl daemon-reload" in undo


def test_files_are_remembered_after_the_checks_and_before_the_first_is_replaced():
    entries = [Directory("/etc/d"), Content(b"x", "/etc/d/a", check="true {path}"), Content(b"y", "/etc/d/b")]
    lines = _install_script(entries, "/stage", "firewall").splitlines()
    (keep,) = [line for line in lines if " keep " in line]
    assert keep == "/usr/local/lib/minipc/revert keep firewall /etc/d/a /etc/d/b"
    after = lines[lines.index(keep) + 1 :]
    assert after
    assert all(line.startswith("mv ") for line in after)
    assert not any(" keep " in line for line in _install_script(entries, "/stage").splitlines())


class Host:
    name = "mini"
    data = type("Data", (), {"dict": staticmethod(dict)})


@pytest.fixture(autouse=True)
def host(monkeypatch):
    monkeypatch.setattr(revert.context, "host", Host())
    monkeypatch.setattr(revert, "_clock_runs", set())


def test_without_a_change_nothing_is_run(monkeypatch):
    monkeypatch.setattr(revert, "_is_pending", lambda change: False)
    assert list(revert.armed._inner(change="x", undo="true")) == []
    assert list(revert.confirmed._inner(change="x", within_s=60, address=None)) == []


def test_a_change_that_was_taken_back_meanwhile_is_not_taken_for_confirmed(monkeypatch):
    """The connection was lost, the machine took the change back, the connection is there again."""
    monkeypatch.setattr(revert, "_is_pending", lambda change: True)
    remember, _ = revert.armed._inner(change="x", undo="true")
    assert remember.function(None, Host(), *remember.args)
    monkeypatch.setattr(revert, "_is_pending", lambda change: False)
    assert len(list(revert.confirmed._inner(change="x", within_s=60, address=None))) == 1
    assert list(revert.confirmed._inner(change="y", within_s=60, address=None)) == []


def test_one_that_was_taken_back_before_it_was_armed_is_not_either(monkeypatch):
    """The clock starts when files are replaced; a controller that was held up arms nothing any more."""
    told = SimpleNamespace(name="mini", get_fact=lambda *_, **__: {}, log=lambda *_: None)
    monkeypatch.setattr(revert.context, "host", told)
    monkeypatch.setattr(revert.context, "state", SimpleNamespace(config=SimpleNamespace(DIFF=False)))
    monkeypatch.setattr(files, "announced", lambda *_: [])
    steps = list(files.entries_present._inner(entries=[Content(b"x", "/etc/a")], change="x"))
    for step in steps:
        if isinstance(step, FunctionCommand):
            step.function(None, told, *step.args)
    monkeypatch.setattr(revert, "_is_pending", lambda change: False)
    assert list(revert.armed._inner(change="x", undo="true")) == []
    assert len(list(revert.confirmed._inner(change="x", within_s=60, address=None))) == 1


@pytest.mark.parametrize(("codes", "confirmed"), [([0], True), ([255, 255, 0], True), ([1], False)])
def test_it_tries_again_while_there_is_no_connection(monkeypatch, tmp_path, codes, confirmed):
    """But a machine that answers and refuses has taken the change back already."""
    asked = []

    def answer(argv, **_):
        asked.append(argv)
        return subprocess.CompletedProcess(argv, codes[len(asked) - 1], "", "no\n")

    monkeypatch.setattr(ssh, "write_config", lambda entries: tmp_path / "config")
    monkeypatch.setattr(revert.subprocess, "run", answer)
    monkeypatch.setattr(revert, "PAUSE_S", 0)
    assert revert._connect_and_confirm(None, Host(), "x", 60, "10.99.0.1") is confirmed
    assert len(asked) == len(codes)
    assert {"ControlPath=none", "HostName=10.99.0.1", "HostKeyAlias=mini"} <= set(asked[0]), "a connection of its own"


def test_it_gives_up_before_the_machine_does(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], ssh.FAILED, "", "Connection refused")
    monkeypatch.setattr(ssh, "write_config", lambda entries: tmp_path / "config")
    monkeypatch.setattr(revert.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(revert, "PAUSE_S", 0)
    moments = iter(range(100))
    monkeypatch.setattr(polling.time, "monotonic", lambda: next(moments))
    assert revert._connect_and_confirm(None, Host(), "x", 20, None) is False
    assert next(moments) <= 20
