"""QEMU's command line, and what decides between KVM and emulation; no machine is started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from minipc.core.errors import ConfigError
from rehearsal.lab import backends, nspawn, qemu
from rehearsal.lab.machine import Machine


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    return Machine("mini", 3, 6, "image", backend="qemu")


def test_each_machine_has_its_backend():
    assert backends.backend_of(Machine("a", 0, 1, "i")) is nspawn
    assert backends.backend_of(Machine("a", 0, 1, "i", backend="qemu")) is qemu
    with pytest.raises(ConfigError, match="no backend 'xen'"):
        backends.named("xen")


@pytest.mark.parametrize("backend", [nspawn, qemu])
def test_a_backend_has_every_function_of_the_protocol(backend):
    wanted = [name for name in vars(backends.Backend) if not name.startswith("_")]
    wanted += backends.Backend.__annotations__
    assert {"start", "kill", "BOOT_SECONDS"} <= set(wanted)
    assert [name for name in wanted if not hasattr(backend, name)] == []


def test_the_machine_has_both_networks_and_its_own_disk(machine):
    command = " ".join(qemu.qemu_command(machine, accelerated=False))
    assert f"file={machine.disk}" in command
    assert "ifname=lab3-public,script=no" in command
    assert "ifname=lab3-operator,script=no" in command
    assert "mac=02:6c:61:62:00:0d" in command
    assert "-nodefaults" in command


def test_emulation_and_kvm(machine):
    emulated = " ".join(qemu.qemu_command(machine, accelerated=False))
    assert "-accel tcg,thread=multi -cpu Nehalem" in emulated
    assert "-accel kvm -cpu host" in " ".join(qemu.qemu_command(machine, accelerated=True))


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """Return a function that runs `kvm_works` with a prepared QEMU."""

    def ask(output: str | None, device: bool = True) -> bool:
        qemu.kvm_works.cache_clear()
        monkeypatch.setattr(qemu.disk_image, "extract_kernel", lambda disk, folder: folder / "linux")
        monkeypatch.setattr(qemu, "KVM_DEVICE", tmp_path if device else tmp_path / "absent")

        def run(argv, timeout, **_):
            if output is None:
                raise subprocess.TimeoutExpired(argv, timeout)
            console = next(word.removeprefix("file:") for word in argv if word.startswith("file:"))
            if output:
                Path(console).write_text(output)

        monkeypatch.setattr(qemu.subprocess, "run", run)
        try:
            return qemu.kvm_works(tmp_path / "disk")
        finally:
            qemu.kvm_works.cache_clear()

    return ask


@pytest.mark.parametrize(
    ("console", "works"),
    [("[    0.000000] Linux version 6.12\n", True), ("", False), ("KVM internal error\n", False), (None, False)],
    ids=["it boots", "it dies", "it errs", "it hangs"],
)
def test_kvm_works_if_a_kernel_prints_its_version(probe, console, works):
    assert probe(console) is works


def test_without_the_device_nothing_is_started(probe):
    assert probe("Linux version", device=False) is False
