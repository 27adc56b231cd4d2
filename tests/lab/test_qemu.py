"""Test machines with separate firmware, boot loader, disk and kernel."""

from __future__ import annotations

import os
import re

import pytest

from minipc.core.process import call
from minipc.images.disk_image import ESP_OFFSET
from rehearsal import lab
from tests.lab.conftest import run

NAME = f"test-qemu-{os.getpid()}"


@pytest.mark.long
@pytest.mark.timeout(2400, func_only=True)
def test_the_configuration_comes_up_on_a_separate_kernel(lab_ready):
    try:
        done = run("minipc", "rehearse", "--backend", "qemu", "--name", NAME, timeout_s=2400)
    finally:
        lab.down([NAME, f"{NAME}-2", f"offsite-{NAME}"])
    assert done.code == 0, done.output[-4000:]
    record = done.record
    phases = {phase["name"]: phase for phase in record["phases"]}
    assert record["target"]["backend"] == "qemu"
    assert record["target"]["kernel"] != os.uname().release
    assert "deb13" in record["target"]["kernel"]
    if "tunnel" in phases:  # emulated: the short rehearsal
        assert "in the kernel" in phases["tunnel"]["detail"]
        assert any("KVM does not work" in gap["why"] for gap in record["exercised"]["not_exercised"])
    exercised = {check["name"] for check in record["checks"] if check["outcome"] == "passed"}
    # A container cannot set these.
    assert {name for name in exercised if name.startswith("kernel setting")}


@pytest.mark.long
def test_an_image_for_hardware_carries_the_identity_and_is_private(lab_ready, tmp_path):
    image = tmp_path / "mini.img"
    with lab.machine(f"{NAME}-i") as machine:
        done = run("minipc", "image", "build", str(image), "--inventory", "lab", "--host", machine.name, timeout_s=600)
        again = run("minipc", "image", "build", str(image), "--inventory", "lab", "--host", machine.name)
    assert done.code == 0, done.output
    assert re.search(r"host key +SHA256:\S{43}", done.output)
    assert image.stat().st_mode & 0o777 == 0o600
    assert (again.code, "exists" in again.output) == (3, True)
    call("mcopy", "-i", f"{image}@@{ESP_OFFSET}", "::minipc/identity.tar", str(tmp_path))
    names = call("tar", "-tvf", str(tmp_path / "identity.tar"))
    assert re.search(r"-rw------- 0/0 .* etc/ssh/ssh_host_ed25519_key\n", names)
    assert "root/.ssh/authorized_keys" in names
