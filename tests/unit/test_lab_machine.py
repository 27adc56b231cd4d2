"""Names, addresses and the state file of lab machines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from minipc.core.errors import ConfigError
from rehearsal.lab.machine import MAX_MACHINES, Machine, ProcessId, check_name, find, free_index, load_all
from rehearsal.lab.mounts import UID_COUNT
from rehearsal.lab.nspawn import first_uid


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))


def a_machine(name: str = "mini", index: int = 0) -> Machine:
    return Machine(name=name, index=index, disk_gb=8, image="/image", host_key="ssh-ed25519 AAAAC3Nz")


@pytest.mark.parametrize("name", ["a", "mini", "mini-1", "m" * 32])
def test_valid_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", "1mini", "-mini", "mini-", "Mini", "mini_1", "m" * 33, "../x", "a b", "mini\n", "public", "all"]
)
def test_invalid_names_are_refused_before_anything_is_touched(name: str) -> None:
    with pytest.raises(ConfigError, match="machine name"):
        check_name(name)


def test_the_smallest_free_number_is_taken() -> None:
    assert free_index([]) == 0
    assert free_index([0, 2, 1, 4]) == 3


def test_a_full_lab_is_an_error() -> None:
    with pytest.raises(ConfigError, match=str(MAX_MACHINES)):
        free_index(range(MAX_MACHINES))


def test_addresses_are_derived_from_the_number() -> None:
    machine = a_machine(index=2)
    assert (machine.public_ipv4, machine.public_ipv6) == ("198.51.100.12", "2001:db8:51::c")
    assert machine.operator_ipv4.endswith(".0.12")
    assert machine.operator_ipv6.endswith("::c")
    assert machine.ssh_host == machine.operator_ipv4


def test_user_ids_of_machines_never_overlap_and_stay_in_systemds_range() -> None:
    first, second, last = (first_uid(a_machine(index=index)) for index in (0, 1, MAX_MACHINES - 1))
    assert second - first == UID_COUNT
    assert first >= 0x00080000
    assert last + UID_COUNT - 1 <= 0x6FFFFFFF


def test_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=20)
    machine = a_machine()
    machine.host_key = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    printed = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=True, timeout=20)
    assert machine.host_key_fingerprint == printed.stdout.split()[1]


def test_state_is_written_and_read_back() -> None:
    machine = a_machine()
    machine.owner = machine.process = ProcessId.own()
    machine.memory_mb = 512
    machine.save()
    assert find("mini") == machine
    assert load_all() == [machine]


def test_incomplete_state_is_ignored() -> None:
    machine = a_machine()
    machine.directory.mkdir(parents=True)
    (machine.directory / "machine.json").write_text('{"name": "mi')
    assert find("mini") is None


def test_a_reused_process_number_is_not_the_same_process() -> None:
    own = ProcessId.own()
    assert own.is_running()
    assert not ProcessId(own.pid, own.started - 1).is_running()


def test_a_zombie_is_not_running() -> None:
    child = subprocess.Popen(["sleep", "60"])
    identity = ProcessId.of(child.pid)
    assert identity is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and nobody has collected it
    try:
        assert not identity.is_running()
    finally:
        child.wait()


def test_machines_are_abandoned_when_their_owner_has_ended_unless_kept() -> None:
    machine = a_machine()
    machine.owner = ProcessId.own()
    assert not machine.abandoned
    machine.owner = ProcessId(machine.owner.pid, machine.owner.started - 1)
    assert machine.abandoned
    machine.kept = True
    assert not machine.abandoned
