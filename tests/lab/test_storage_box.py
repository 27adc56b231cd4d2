"""Backups in a storage box, with a real server: OpenSSH's internal-sftp in a chroot, on a machine of the lab."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from minipc.remote.host_keys import generate_key
from minipc_machine.program import FailedError
from minipc_machine.storage_box import StorageBox, content, examine
from rehearsal import lab
from rehearsal.lab import storage_box
from tests.lab.conftest import on, run

HOME = f"{storage_box.CHROOT}/home"
FOLDER = f"{storage_box.CHROOT}{storage_box.PATH}"


@dataclass(frozen=True)
class Served:
    """A box that a machine of the lab serves, and the key that it accepts."""

    machine: lab.Machine
    box: StorageBox
    key: str


@pytest.fixture(scope="module")
def served(lab_ready, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a box from a machine."""
    name = "offsite-test-box"
    lab.down(name)
    key = tmp_path_factory.mktemp("key") / "key"
    generate_key(key, "test")
    with lab.machine(name) as machine:
        box = storage_box.serve(machine, authorized=key.with_suffix(".pub").read_text().strip())
        yield Served(machine, box, str(key))


@pytest.mark.timeout(300)
def test_a_box_is_used_or_refused_with_the_reason(served: Served, tmp_path: Path):
    """One test, so that the machine boots once."""
    machine, box, key = served.machine, served.box, served.key
    assert "MB are free" in str(examine(box, key))
    assert on(machine, f"ls -A {FOLDER}") == "", "the check leaves nothing"

    generate_key(tmp_path / "other", "test")
    with pytest.raises(FailedError, match="does not accept the mini PC's key"):
        examine(box, str(tmp_path / "other"))
    with pytest.raises(FailedError, match="cannot be reached"):
        examine(replace(box, port=1), key)
    with pytest.raises(FailedError, match="of the type ecdsa-sha2-nistp256, which is not pinned"):
        examine(replace(box, host_keys=[each for each in box.host_keys if "ecdsa" not in each]), key)
    stranger = (tmp_path / "other.pub").read_text().strip()
    with pytest.raises(FailedError, match="shows the host key SHA256:"):
        content(replace(box, host_keys=[stranger]), key)
    with pytest.raises(FailedError, match="create the folder above it"):
        examine(replace(box, path="/nowhere/minipc"), key)
    with pytest.raises(FailedError, match=r"is full: .* MB must be"):
        examine(replace(box, free_mb=10**7), key)

    on(machine, f"touch {FOLDER}/photos.tar")
    with pytest.raises(FailedError, match=r"used by something else: it contains 'photos\.tar'"):
        examine(box, key)
    on(machine, f"rm {FOLDER}/photos.tar && chown root: {FOLDER}")
    with pytest.raises(FailedError, match="cleaned up: give the account the right"):
        examine(box, key)
    on(machine, f"chmod 700 {FOLDER}")
    with pytest.raises(FailedError, match="cannot be listed: give the account the right"):
        examine(box, key)

    on(machine, f"mount -t tmpfs -o size=1m,mode=777 tmpfs {FOLDER} && head -c 1m /dev/zero > {FOLDER}/.full || true")
    with pytest.raises(FailedError, match="cleaned up: it is probably full"):
        examine(box, key)
    on(machine, f"umount {FOLDER} && rmdir {FOLDER}")
    examine(box, key)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_lost_machine_comes_back_from_the_box_alone_which_was_full_and_slow(lab_ready):
    """The rebuilt machine is kept: what a full box and a slow one do to it is tried on it."""
    name = f"box-{os.getpid()}"
    rebuilt, offsite = f"{name}-2", f"offsite-{name}"
    try:
        done = run("minipc", "rehearse", "--offsite", "sftp", "--keep", "--name", name, timeout_s=1400)
        assert done.code == 0, done.output[-4000:]
        record = done.record
        assert record["verdict"] == "pass"
        skipped = {each["what"] for each in record["exercised"]["not_exercised"]}
        assert {"fence of the lost machine", "deploy repository", "monitoring from outside"} <= skipped
        assert "backups that the mini PC's key cannot delete" in skipped
        passed = {each["name"] for each in record["checks"] if each["outcome"] == "passed"}
        assert any("The storage box is the pinned one" in each for each in passed)
        assert {f"A backup into the repository succeeds ({repo})" for repo in ("repo2", "restic")} <= passed
        machines = {each.name: each for each in lab.list_machines()}
        _backs_up_slowly(machines[offsite], rebuilt)
        _says_that_the_box_is_full(machines[offsite], machines[rebuilt])
    finally:
        lab.down([name, rebuilt, offsite])


def _backs_up_slowly(offsite: lab.Machine, alias: str) -> None:
    """Take a backup and a drill from the box at two megabits a second, both ways."""
    links = re.findall(r"^\d+: ([^:@]+)", on(offsite, "ip -o link"), re.MULTILINE)
    links = [each for each in links if each != "lo"]
    for link in links:
        on(offsite, f"tc qdisc add dev {link} root tbf rate 2mbit burst 32kb latency 400ms")
    try:
        done = run("minipc", "backup", "now", "--inventory", "lab", "--host", alias, timeout_s=600)
        assert done.code == 0, done.output
    finally:
        for link in links:
            on(offsite, f"tc qdisc del dev {link} root")
    done = run("minipc", "drill", "--repo", "2", "--inventory", "lab", "--host", alias, timeout_s=300)
    assert done.code == 0, done.output


def _says_that_the_box_is_full(offsite: lab.Machine, mini: lab.Machine) -> None:
    """Fill the disk of the box: backups fail with the reason, repo1 gets its backup, and all is well afterwards."""
    full = f"{storage_box.CHROOT}/full"
    on(offsite, f"free=$(df --output=avail -B1 {HOME} | tail -n 1); fallocate -l $free {full}; : > {HOME}/x; df {HOME}")
    try:
        done = run("minipc", "backup", "now", "--inventory", "lab", "--host", mini.name, timeout_s=600)
        assert done.code == 1, done.output
        assert "repo2: FAILED" in done.output
        assert "restic: FAILED" in done.output
        assert "repo1: FAILED" not in done.output
        checked = on(mini, "/usr/local/lib/minipc/storage-box 2>&1; echo exit $?")
        assert "full" in checked, checked
        assert "exit 1" in checked
    finally:
        on(offsite, f"rm -f {full}")
    done = run("minipc", "backup", "now", "--inventory", "lab", "--host", mini.name, timeout_s=600)
    assert done.code == 0, done.output
