"""An encrypted disk in a virtual machine with a TPM: unlocked over SSH, by the TPM, and not by a changed boot.

Needs no network of the lab: QEMU forwards two ports of an address of the loopback network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from minipc.cli import image
from minipc.cli.machine import disk as disk_command
from minipc.config import load
from minipc.core.environment import LAB
from minipc.core.errors import CouldNotVerifyError, MinipcError
from minipc.core.polling import wait_until
from minipc.core.process import call, clean_environment
from minipc.images import disk_image, prerequisites
from minipc.images.disk_encryption import UNLOCK_PORT
from minipc.remote.host_keys import generate_key
from minipc.remote.inventory import Target
from minipc.remote.queries import on
from minipc.secrets import open_store
from minipc.secrets.catalogue import DISK_PASSPHRASE, needed
from minipc.secrets.generate import generate
from playbooks import disk_encryption
from rehearsal import lab
from rehearsal.lab import qemu

ADDRESS = f"127.77.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
CANARY = "what a user wrote to the encrypted disk"
DISK_MIB = 5120
# Emulated on two busy cores; each boot takes two to six minutes.
BOOT_S = 900


class Computer:
    """A computer with a disk and a TPM, switched off at first."""

    def __init__(self, folder: Path) -> None:
        self.disk, self.console = folder / "disk.img", folder / "console"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        shutil.copyfile(qemu.firmware("VARS"), folder / "variables")

    def switch_on(self) -> None:
        """Start the TPM, which keeps its state in the folder, then the computer."""
        accelerated = not qemu.is_emulated(self.disk)
        socket = self._folder / "tpm"
        (self._folder / "tpm-state").mkdir(exist_ok=True)
        self._start(
            *("swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", f"dir={self._folder / 'tpm-state'}"),
            *("--ctrl", f"type=unixio,path={socket}"),
        )
        assert wait_until(socket.exists, within_s=20, every_s=0.1)
        forwards = "".join(f",hostfwd=tcp:{ADDRESS}:{port}-:{port}" for port in (22, UNLOCK_PORT))
        self._start(
            *qemu.hardware("encrypted", self.disk, self._folder / "variables", self.console, accelerated=accelerated),
            *("-m", str(qemu.MEMORY_MB), "-netdev", f"user,id=net{forwards}", "-device", "virtio-net-pci,netdev=net"),
            *("-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm,chardev=tpm"),
            *("-device", "tpm-tis,tpmdev=tpm"),
        )

    def switch_off(self) -> None:
        """Cut the power."""
        for process in reversed(self._processes):
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(30)
        self._processes.clear()

    def _start(self, *argv: str) -> None:
        with (self._folder / "output").open("ab") as output:
            self._processes.append(
                subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean_environment())
            )


@pytest.fixture
def computer(tmp_path: Path) -> Iterator[Computer]:
    try:
        lab.ensure_prerequisites(install=True, qemu=True)
        prerequisites.install(prerequisites.missing_packages({"swtpm": "swtpm"}, {}))
    except MinipcError as error:
        pytest.skip(f"NOT EXERCISED: {error}")
    made = Computer(tmp_path)
    try:
        yield made
    finally:
        made.switch_off()


def ssh(key: Path, port: int, command: str) -> subprocess.CompletedProcess[str]:
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]
    options += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
    argv = ["ssh", *options, "-i", str(key), "-p", str(port), f"root@{ADDRESS}", command]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)


def answers(port: int) -> bool:
    """Return whether an SSH server answers. QEMU accepts connections before the machine does."""
    argv = ["ssh-keyscan", "-T", "10", "-t", "ed25519", "-p", str(port), ADDRESS]
    return bool(subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout)


def wait_for(port: int, computer: Computer) -> None:
    found = wait_until(lambda: answers(port), within_s=BOOT_S, every_s=2)
    assert found, computer.console.read_text(errors="replace")[-3000:]


def contains(path: Path, texts: list[bytes], start: int = 0) -> list[bytes]:
    """Return those of the texts that are in a file after `start` bytes."""
    found, tail = set(), b""
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 24):
            found |= {text for text in texts if text in tail + block}
            tail = block[-200:]
    return sorted(found)


@pytest.mark.long
@pytest.mark.timeout(6000, func_only=True)
def test_a_disk_is_unlocked_over_ssh_and_by_the_tpm_but_not_by_a_changed_boot(computer, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))
    generate_key(tmp_path / "operator", "operator")
    generate_key(tmp_path / "stranger", "stranger")
    settings = load(
        "lab",
        host_operator_keys=[(tmp_path / "operator.pub").read_text().strip()],
        host_disk_encryption="tpm2",
        host_name="sealed",
    )
    generate("lab", needed("host"))
    data = {
        "ssh_hostname": ADDRESS,
        "ssh_port": 22,
        "ssh_user": "root",
        "ssh_key": str(tmp_path / "operator"),
        "ssh_known_hosts_file": str(tmp_path / "known_hosts"),
    }
    target = Target("sealed", data, settings)
    for module in (image, disk_encryption):
        monkeypatch.setattr(module, "the_target", lambda environment, alias: target)

    def minipc(command, *arguments: str) -> str:
        done = CliRunner().invoke(command, [*arguments, "--inventory", LAB.name])
        if done.exception:
            raise done.exception
        return done.output

    def booted() -> bool:
        with suppress(CouldNotVerifyError):
            return on(target, "systemctl is-system-running || true") in ("running", "degraded")
        return False

    def wait_until_booted() -> None:
        wait_for(22, computer)
        keys = subprocess.run(
            ["ssh-keyscan", "-t", "ed25519", ADDRESS], capture_output=True, text=True, timeout=60
        ).stdout
        (tmp_path / "known_hosts").write_text(keys)
        assert wait_until(booted, within_s=BOOT_S, every_s=2)

    # The image.
    file = tmp_path / "sealed.img"
    printed = minipc(image.image, "build", str(file))
    assert disk_encryption.encryption_of(LAB, settings).host_key
    assert "answers on port 2222 with SHA256:" in printed
    assert file.stat().st_mode & 0o777 == 0o600
    passphrase = open_store("lab").get(DISK_PASSPHRASE).reveal()
    root = disk_image.ESP_OFFSET + disk_image.ESP_MIB * disk_image.MIB
    system = [b"PRETTY_NAME", b"root:x:0:0", b"minipc-first-boot", b"BEGIN OPENSSH PRIVATE KEY"]
    assert contains(file, [passphrase.encode(), b"BEGIN OPENSSH PRIVATE KEY"]) == []
    assert contains(file, system, start=root) == []
    disk_image.copy_to(file, computer.disk, DISK_MIB * disk_image.MIB)
    file.unlink()

    # The first boot: only the operator can do anything, and only give the passphrase.
    computer.switch_on()
    wait_for(UNLOCK_PORT, computer)
    assert not answers(22)
    assert "Permission denied" in ssh(tmp_path / "stranger", UNLOCK_PORT, "id").stderr
    assert "uid=" not in ssh(tmp_path / "operator", UNLOCK_PORT, "id").stdout
    assert "set up successfully" in minipc(disk_command, "unlock")
    wait_until_booted()
    assert "done" in minipc(disk_command, "prepare")
    free_mib = int(on(target, "df --output=avail -BM / | tail -1").strip(" M"))
    assert free_mib > DISK_MIB - disk_image.ESP_MIB - 2048, "the whole disk is used"
    assert on(target, "findmnt -no SOURCE /") == "/dev/mapper/root"
    on(target, f"echo '{CANARY}' > /root/canary; sync")
    # What runs from the disk no longer gets the key from the TPM.
    bound = on(target, "clevis luks list -d /dev/disk/by-partlabel/root")
    assert bound.count("tpm2") == 1
    slot = bound.split(":")[0]
    given = on(target, f"clevis luks pass -d /dev/disk/by-partlabel/root -s {slot} >/dev/null 2>&1; echo $?")
    assert given != "0"
    without_15 = """clevis encrypt tpm2 '{"pcr_bank":"sha256","pcr_ids":"4,7,9"}' | clevis decrypt"""
    assert on(target, f"echo control | {without_15}") == "control", "it is PCR 15 that makes the difference"
    first = on(target, "cat /proc/sys/kernel/random/boot_id")

    # The TPM unlocks it.
    ssh(tmp_path / "operator", 22, "systemctl reboot")
    wait_until(lambda: not answers(22), within_s=120, every_s=1)
    wait_until_booted()
    assert on(target, "cat /proc/sys/kernel/random/boot_id") != first
    assert on(target, "cat /root/canary") == CANARY
    assert on(target, "systemctl --failed --no-legend") == ""

    # A thief changes the command line to get a shell: the TPM refuses, and the passphrase is asked for.
    on(target, "sync")
    computer.switch_off()
    assert contains(computer.disk, [CANARY.encode(), passphrase.encode()]) == []
    edit_entry(computer.disk, tmp_path, lambda text: text.replace(" panic=10", " panic=10 init=/bin/sh"))
    computer.switch_on()
    wait_for(UNLOCK_PORT, computer)
    time.sleep(120)  # the TPM is asked every five seconds
    assert answers(UNLOCK_PORT), "still locked"
    assert not answers(22)

    # Its passphrase unlocks it, once the command line is right again.
    computer.switch_off()
    edit_entry(computer.disk, tmp_path, lambda text: text.replace(" init=/bin/sh", ""))
    shutil.rmtree(tmp_path / "tpm-state")  # the TPM is lost, as on a new mainboard
    computer.switch_on()
    wait_for(UNLOCK_PORT, computer)
    minipc(disk_command, "unlock")
    wait_until_booted()
    assert on(target, "cat /root/canary") == CANARY
    minipc(disk_command, "prepare")
    assert on(target, "clevis luks list -d /dev/disk/by-partlabel/root").count("tpm2") == 1
    for path in (*tmp_path.glob("output"), computer.console):
        assert passphrase not in path.read_text(errors="replace")
    assert on(target, "journalctl -b -o cat | grep -cF -f /dev/stdin || true", stdin=f"{passphrase}\n") == "0"


def edit_entry(disk: Path, folder: Path, change: Callable[[str], str]) -> None:
    """Change the boot loader's entry on the EFI partition, which is not encrypted."""
    partition = f"{disk}@@{disk_image.ESP_OFFSET}"
    names = call("mdir", "-b", "-i", partition, "::loader/entries").split()
    name = next(name for name in names if name.endswith(".conf"))
    call("mcopy", "-o", "-n", "-i", partition, name, str(folder / "entry"))
    before = (folder / "entry").read_text()
    after = change(before)
    assert after != before
    (folder / "entry").write_text(after)
    call("mcopy", "-o", "-i", partition, str(folder / "entry"), name)
