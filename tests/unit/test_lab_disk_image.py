"""The disk image's recipe and a machine's identity, without building anything."""

from __future__ import annotations

import io
import subprocess
import tarfile

import pytest

from minipc.images import disk_image
from minipc.images.apt_sources import Mirrors
from rehearsal.lab import identity, network
from rehearsal.lab.machine import Machine

MIRRORS = Mirrors("http://mirror.lan/debian", None)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b lab"


def test_another_input_makes_another_image(monkeypatch):
    before = disk_image.inputs_hash(MIRRORS, "amd64")
    assert disk_image.inputs_hash(MIRRORS, "amd64") == before
    assert disk_image.inputs_hash(MIRRORS, "arm64") != before
    assert disk_image.inputs_hash(Mirrors("http://other.lan/debian", None), "amd64") != before
    for name in ("CUSTOMISE", "FIRST_BOOT", "FIRST_BOOT_PROGRAM", "LAYOUT"):
        with monkeypatch.context() as changed:
            changed.setattr(disk_image, name, getattr(disk_image, name) + "# more\n")
            assert disk_image.inputs_hash(MIRRORS, "amd64") != before, name


def test_the_partitions_fit_into_the_image():
    end = disk_image.ESP_OFFSET + (disk_image.ESP_MIB + disk_image.ROOT_MIB) * disk_image.MIB
    assert end <= (disk_image.IMAGE_MIB - 1) * disk_image.MIB, "GPT keeps its backup in the last sectors"


def test_the_scripts_are_valid_shell(tmp_path):
    script = disk_image.customise("0" * 8, tmp_path)
    assert "@" not in script.replace("minipc-failed@", "")
    for text in (script, disk_image.FIRST_BOOT_PROGRAM):
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_an_identity_is_packed_with_root_as_owner_and_its_modes():
    packed = disk_image.pack({"etc/hostname": ("mini\n", 0o644), "etc/ssh/key": ("secret", 0o600)})
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        found = {member.name: (member.mode, member.uid, tar.extractfile(member).read()) for member in tar}
    assert found == {"etc/hostname": (0o644, 0, b"mini\n"), "etc/ssh/key": (0o600, 0, b"secret")}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(identity.ssh, "client_public_key", lambda: KEY)
    monkeypatch.setattr(network, "nameservers", lambda: ["192.0.2.53"])
    made = Machine("mini", 3, 6, "image", backend="qemu", host_key="ssh-ed25519 AAAA")
    made.save()
    (made.directory / "ssh_host_ed25519_key").write_text("private")
    return made


def test_a_machine_gets_its_own_keys_and_addresses(machine):
    files = identity.files(machine)
    assert files["etc/hostname"] == ("mini\n", 0o644)
    assert files["etc/ssh/ssh_host_ed25519_key"] == ("private", 0o600)
    assert files["root/.ssh/authorized_keys"] == (f"{KEY}\n", 0o600)
    public = files["etc/systemd/network/10-public0.network"][0]
    assert f"Address={machine.public_ipv4}/24" in public
    assert "Gateway=" in public
    assert "Gateway=" not in files["etc/systemd/network/10-operator0.network"][0]


def test_interfaces_are_named_by_hardware_address(machine):
    link = identity.render_link(machine, network.PUBLIC)
    assert f"PermanentMACAddress={network.PUBLIC.mac_of(13)}" in link
    assert "Name=public0" in link
