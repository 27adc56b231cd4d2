"""The other computer that a rehearsal rebuilds from: an empty home, a clean clone, and nothing of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minipc import paths
from minipc.lab import tunnel
from minipc.variables import RUN_VARIABLE
from playbooks import elsewhere
from tests.unit.bundle_home import git


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    for name in ("kept", "changed", "deleted"):
        (folder / name).write_text(f"{name}\n")
    (folder / ".gitignore").write_text("/ignored\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return folder


@pytest.fixture
def computer(checkout, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", checkout)
    place = elsewhere.Elsewhere()
    yield place
    place.remove()
    assert not place.root.exists()


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name != ".gitignore"}


def test_a_clean_checkout_is_cloned_at_its_commit(checkout, tmp_path):
    assert elsewhere.clone(checkout, tmp_path / "clone") == []
    assert git(tmp_path / "clone", "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")
    assert git(tmp_path / "clone", "status", "--porcelain") == ""


def test_what_is_not_committed_is_copied_and_told(checkout, tmp_path):
    (checkout / "changed").write_text("anew\n")
    (checkout / "deleted").unlink()
    (checkout / "new").write_text("new\n")
    (checkout / "ignored").write_text("a report\n")
    assert elsewhere.clone(checkout, tmp_path / "clone") == ["changed", "deleted", "new"]
    assert files(tmp_path / "clone") == {"kept": "kept\n", "changed": "anew\n", "new": "new\n"}


def test_without_git_everything_is_a_copy_and_told(tmp_path):
    source = tmp_path / "unpacked"
    (source / "reports").mkdir(parents=True)
    (source / "file").write_text("x\n")
    assert elsewhere.clone(source, tmp_path / "clone") == ["everything (no git checkout)"]
    assert [path.name for path in (tmp_path / "clone").iterdir()] == ["file"]


def test_the_vpns_client_stays_the_same_peer(computer, monkeypatch, tmp_path):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "here"))
    computer.connect([])
    theirs = computer.state / "lab/vpn.key"
    assert theirs.read_text() == tunnel.client_key().reveal()
    assert theirs.stat().st_mode & 0o077 == 0


def test_a_process_there_knows_nothing_of_this_computer(computer, monkeypatch):
    for name in ("MINIPC_STATE_DIR", "MINIPC_LAB_SECRETS_DIR", "MINIPC_AGE_KEY_FILE", "SSH_AUTH_SOCK", "VAULT_TOKEN"):
        monkeypatch.setenv(name, "/here")
    environment = computer.environment()
    assert "/here" not in environment.values()
    for name in ("HOME", "TMPDIR", "PYTHONPATH"):
        assert Path(environment[name]).is_relative_to(computer.root)
    assert os.listdir(computer.home) == []


def test_it_says_what_the_rebuild_had(computer, checkout):
    assert str(computer) == f"empty HOME, clean clone of {git(checkout, 'rev-parse', 'HEAD')[:12]}"
    computer.copied = ["one", "two"]
    assert str(computer).endswith("with 2 uncommitted files copied into it")


def test_nothing_is_handed_back_from_a_bundle_that_was_never_opened(computer):
    computer.hand_back("mini")


def test_a_process_there_takes_part_in_a_run_and_ends_with_all_it_started(computer, monkeypatch, tmp_path):
    """What it started must not go on changing a machine after its end."""
    script = (
        "import os, subprocess, sys, time; "
        f"child = subprocess.Popen(['sleep', '60']); print(os.environ['{RUN_VARIABLE}'], child.pid, flush=True); "
        "time.sleep(60)"
    )
    monkeypatch.setattr(elsewhere, "_CLI", (sys.executable, "-c", script))
    process = computer.start("rebuild", run=tmp_path, log=tmp_path / "log")
    try:
        while len((tmp_path / "log").read_text().split()) < 5:
            assert process.poll() is None
    finally:
        elsewhere.end(process, signal.SIGKILL)
    *_, run, child = (tmp_path / "log").read_text().split()
    assert run == str(tmp_path)
    give_up_at = time.monotonic() + 20
    while (state := _state(child)) not in ("", "Z") and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert state in ("", "Z")


def _state(pid: str) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
