"""An encrypted disk: files of the initramfs, encryption of a file, what a machine is asked. No machine is started."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from minipc.config import load
from minipc.core.environment import LAB
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError, MissingPrerequisiteError, SecretError
from minipc.images import disk_encryption as images
from minipc.images import disk_image
from minipc.remote.inventory import Target
from minipc.secrets import Secret, open_store
from minipc.secrets.catalogue import DISK_PASSPHRASE, DISK_UNLOCK_KEY, needed, whole
from minipc.secrets.generate import generate, ssh_private_key
from playbooks import disk_encryption

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b operator"
PASSPHRASE = "q7Xw2LmZr9TbVk4NcY8dHs3JpG6fRe5A"


def settings(disk_encryption: str):
    return load("lab", host_operator_keys=[KEY], host_disk_encryption=disk_encryption)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return the lab's secret store in a temporary folder, with the two secrets of a disk."""
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))
    generate("lab", needed("host"))
    return open_store("lab")


def encryption(*, tpm2: bool) -> images.Encryption:
    return images.Encryption(
        tpm2, Secret(DISK_PASSPHRASE, PASSPHRASE), Secret(DISK_UNLOCK_KEY, ssh_private_key()), [KEY]
    )


@pytest.mark.parametrize("method", ["none", "passphrase", "tpm2"])
def test_only_an_encrypted_disk_needs_secrets(store, method):
    found = {entry.name for entry in whole(settings(method))} & {DISK_PASSPHRASE, DISK_UNLOCK_KEY}
    made = disk_encryption.encryption_of(LAB, settings(method))
    assert (len(found), made is None) == ((0, True) if method == "none" else (2, False))
    assert method == "none" or made.tpm2 is (method == "tpm2")


def test_a_passphrase_that_can_be_guessed_is_refused(store):
    store.set_many({DISK_PASSPHRASE: "password1234"})
    with pytest.raises(SecretError, match="can be guessed") as caught:
        disk_encryption.encryption_of(LAB, settings("passphrase"))
    assert "password1234" not in str(caught.value)


def test_a_disk_that_nobody_could_unlock_is_refused(store):
    alone = load("lab", host_operator_keys=[], host_disk_encryption="passphrase")
    with pytest.raises(ConfigError, match="host_operator_keys"):
        disk_encryption.encryption_of(LAB, alone)


@pytest.mark.parametrize("tpm2", [False, True])
def test_the_initramfs_takes_the_passphrase_from_the_operator_only(tpm2):
    made = encryption(tpm2=tpm2)
    files = made.files()
    assert files["etc/dropbear/initramfs/authorized_keys"] == (f"{KEY}\n", 0o600)
    options = files["etc/dropbear/initramfs/dropbear.conf"][0]
    assert {"-s", "-j", "-k"} <= set(options.replace('"', " ").split()), "keys only, no forwarding"
    assert "-c cryptroot-unlock" in options
    assert files[images.UNLOCK_KEY_FILE][1] == 0o600
    assert files["etc/initramfs-tools/conf.d/umask"][0] == "UMASK=0077\n"
    assert ("clevis-tpm2" in made.packages) is tpm2
    assert any("minipc-seal" in name for name in files) is tpm2
    assert PASSPHRASE not in json.dumps(files) + repr(made)


def test_the_scripts_are_valid_shell(tmp_path):
    script = disk_image.customise("0" * 8, tmp_path, tmp_path / "files.tar")
    assert f"-xpf {tmp_path}/files.tar" in script
    assert "panic=10" in script, "the initramfs opens no shell"
    assert "@" not in script.replace("minipc-failed@", "")
    remote = disk_encryption.READ + disk_encryption.GROW + disk_encryption.SEALED_TO
    for text in (script, images.SEAL, images.SEAL_HOOK, remote):
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_tpm_keeps_the_key_once_something_runs_from_the_disk():
    assert "panic" in images.SEAL.split("||")[-1], "a machine whose TPM was not told does not boot"
    assert '\\"pcr_ids\\":\\"4,7,9,15\\"' in disk_encryption.SEALED_TO
    assert "15:sha256=" in images.SEAL


def test_a_tpm_is_refused_where_debians_initramfs_cannot_use_it(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_image, "controller_mirrors", lambda: None)
    monkeypatch.setattr(disk_image, "_architecture", lambda: "arm64")
    with pytest.raises(MissingPrerequisiteError, match="amd64 only; this is arm64"):
        disk_image.build_encrypted(tmp_path / "image", {}, encryption(tpm2=True))


@pytest.mark.skipif(not shutil.which("cryptsetup"), reason="NOT EXERCISED: cryptsetup is not installed")
def test_an_encrypted_file_has_no_plaintext_and_the_passphrase_opens_it(tmp_path):
    partition = tmp_path / "root.img"
    partition.write_bytes(b"canary of the user" * 60_000)
    with partition.open("r+b") as file:
        file.truncate((2 + images.HEADER_MIB) * 1024**2)
    images.encrypt(partition, Secret(DISK_PASSPHRASE, PASSPHRASE))
    content = partition.read_bytes()
    assert content.startswith(b"LUKS\xba\xbe\x00\x02")
    assert b"canary" not in content
    for given, opens in ((PASSPHRASE, True), ("another", False)):
        argv = ["cryptsetup", "open", "--test-passphrase", "--key-file", "-", str(partition)]
        assert (subprocess.run(argv, input=given.encode(), capture_output=True).returncode == 0) is opens


def test_the_passphrase_is_on_standard_input_only(tmp_path, monkeypatch):
    seen = {}

    def run(argv, **options):
        seen.update(argv=argv, **options)
        return SimpleNamespace(returncode=1, stderr=b"No space left on device")

    monkeypatch.setattr(images.subprocess, "run", run)
    with pytest.raises(MinipcError, match="No space left") as caught:
        images.encrypt(tmp_path / "root.img", Secret(DISK_PASSPHRASE, PASSPHRASE))
    assert seen["input"] == PASSPHRASE.encode()
    assert PASSPHRASE not in f"{seen['argv']} {seen['env']} {caught.value}"


@pytest.fixture
def machine(store, monkeypatch):
    """Return what the commands send to a machine, and a way to set its answer."""
    data = {"ssh_hostname": "192.0.2.7", "ssh_port": 22, "ssh_user": "root", "ssh_known_hosts_file": "/dev/null"}
    target = Target("mini", data, settings("tpm2"))
    sent = SimpleNamespace(target=target, answer=(0, b"root set up successfully"), config="", calls=[])

    def run(config, alias, command, *, stdin, timeout_s):
        sent.config, sent.calls = config.read_text(), [*sent.calls, (alias, command, stdin)]
        return SimpleNamespace(returncode=sent.answer[0], stdout=b"", stderr=sent.answer[1])

    monkeypatch.setattr(disk_encryption, "the_target", lambda environment, alias: sent.target)
    monkeypatch.setattr(disk_encryption.ssh, "run", run)
    monkeypatch.setattr(disk_encryption.ssh, "close", lambda config, aliases: None)
    return sent


def test_the_passphrase_goes_only_to_the_pinned_host_key(machine, store):
    assert disk_encryption.unlock(LAB, None) == "root set up successfully"
    assert machine.calls == [("mini-locked", "cryptroot-unlock", store.get(DISK_PASSPHRASE).reveal())]
    assert f"Port {images.UNLOCK_PORT}" in machine.config
    assert "StrictHostKeyChecking yes" in machine.config
    known = machine.config.split("UserKnownHostsFile ")[1].split("\n")[0]
    pinned = disk_encryption.encryption_of(LAB, machine.target.settings).host_key
    with open(known) as file:
        assert f"[192.0.2.7]:{images.UNLOCK_PORT} {pinned}\n" in file.read()


def test_a_refused_passphrase_is_reported_without_it(machine, store):
    machine.answer = (1, b"cryptsetup failed, bad password or options?")
    with pytest.raises(CouldNotVerifyError, match="bad password") as caught:
        disk_encryption.unlock(LAB, None)
    assert store.get(DISK_PASSPHRASE).reveal() not in str(caught.value)


@pytest.mark.parametrize("method", ["passphrase", "tpm2"])
def test_only_a_machine_that_is_set_to_use_its_tpm_does(machine, store, method):
    machine.target = Target("mini", machine.target.data, settings(method))
    disk_encryption.prepare(LAB, None)
    [(alias, command, stdin)] = machine.calls
    assert (alias, stdin) == ("mini", f"{store.get(DISK_PASSPHRASE).reveal()}\n")
    assert ("clevis luks bind" in command) is (method == "tpm2")
    assert "cryptsetup resize" in command


@pytest.mark.parametrize("command", ["unlock", "prepare"])
def test_a_machine_without_encryption_is_not_asked(machine, command):
    machine.target = Target("mini", machine.target.data, settings("none"))
    with pytest.raises(ConfigError, match="not encrypted"):
        getattr(disk_encryption, command)(LAB, None)
    assert machine.calls == []
