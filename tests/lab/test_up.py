"""`minipc up` from blank machines to the first answer of a service, under podman; interrupted once, then continued."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from minipc.core.environment import LAB
from playbooks.up import STEPS, state_file
from rehearsal import lab
from rehearsal.machines import group_in_environment, prepare_secrets
from tests.lab.conftest import BIN, ROOT, run

NAME = "test-up"
PARKDAY = {"MINIPC_SERVICES": "examples/parkday/services"}


@pytest.fixture
def machines(lab_ready):
    """Provide two blank machines: the mini PC and its off-site host."""
    names = [NAME, f"offsite-{NAME}"]
    lab.down(names)
    state_file(LAB, NAME).unlink(missing_ok=True)
    with group_in_environment(LAB):
        prepare_secrets(LAB)
    offsite = lab.up(names[1], disk_gb=6)
    try:
        yield lab.up(NAME, disk_gb=6, podman=True), offsite
    finally:
        lab.down(names)
        state_file(LAB, NAME).unlink(missing_ok=True)


@pytest.mark.long
@pytest.mark.timeout(1500, func_only=True)
def test_from_blank_machines_to_the_first_answer(machines, tmp_path):
    words = ["up", "--inventory", "lab", "--host", NAME, "--bundle", str(tmp_path / "bundle")]
    (tmp_path / "passphrase").write_text("tangled-orchid-seven-pianos-glide")
    (tmp_path / "passphrase").chmod(0o600)
    words += ["--passphrase-file", str(tmp_path / "passphrase")]
    process = subprocess.Popen(
        [str(BIN / "minipc"), *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | PARKDAY,
        start_new_session=True,  # Ctrl-C reaches every process of the terminal
    )
    deadline = time.monotonic() + 120
    while not (state_file(LAB, NAME).exists() and "adopt" in state_file(LAB, NAME).read_text()):
        assert time.monotonic() < deadline, "it was never adopted"
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output.decode()

    began = time.monotonic()
    done = run("minipc", *words, env=PARKDAY, timeout_s=900)
    print(f"from the adopted machines to the end: {time.monotonic() - began:.0f} s")
    assert done.code == 0, done.output[-6000:]
    assert "adopt: done at" in done.output
    assert "the lab has its own VPN client" in done.output
    assert "Only you can do this:" in done.output
    assert (tmp_path / "bundle").exists()
    assert done.record["verdict"] == "pass"
    finished = state_file(LAB, NAME).read_text()
    elsewhere = {"deploy repository", "ArgoCD", "first release", "VPN"}
    assert all(f'"{step.name}"' in finished for step in STEPS if step.name not in elsewhere)
    assert not any(f'"{name}"' in finished for name in elsewhere)
