"""Test the second controller: an empty home, a clean clone, and nothing of the first controller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minipc.core import paths
from minipc.core.variables import RUN_VARIABLE
from rehearsal import second_controller
from rehearsal.lab import tunnel
from tests.unit.bundle_home import git


@pytest.fixture
def checkout(tmp_path):
    """Create a repository with one commit."""
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
    controller = second_controller.SecondController()
    yield controller
    controller.remove()
    assert not controller.root.exists()


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name != ".gitignore"}


def test_a_clean_checkout_is_cloned_at_its_commit(checkout, tmp_path):
    assert second_controller.clone(checkout, tmp_path / "clone") == []
    assert git(tmp_path / "clone", "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")
    assert git(tmp_path / "clone", "status", "--porcelain") == ""


def test_the_images_of_services_are_not_shared(tmp_path):
    for path in ("debs/a.deb", "artifacts/sha256/1", "artifacts/service-images/shop/current"):
        (tmp_path / "cache" / path).parent.mkdir(parents=True)
        (tmp_path / "cache" / path).touch()
    second_controller.share_cache(tmp_path / "cache", tmp_path / "second")
    assert (tmp_path / "second/debs/a.deb").exists()
    assert (tmp_path / "second/artifacts/sha256/1").exists()
    assert not (tmp_path / "second/artifacts/service-images").exists()


def test_uncommitted_files_are_copied_and_reported(checkout, tmp_path):
    (checkout / "changed").write_text("edited\n")
    (checkout / "deleted").unlink()
    (checkout / "new").write_text("new\n")
    (checkout / "ignored").write_text("a report\n")
    assert second_controller.clone(checkout, tmp_path / "clone") == ["changed", "deleted", "new"]
    assert files(tmp_path / "clone") == {"kept": "kept\n", "changed": "edited\n", "new": "new\n"}


def test_without_git_everything_is_copied_and_reported(tmp_path):
    source = tmp_path / "unpacked"
    (source / "reports").mkdir(parents=True)
    (source / "file").write_text("x\n")
    assert second_controller.clone(source, tmp_path / "clone") == ["everything (no git checkout)"]
    assert [path.name for path in (tmp_path / "clone").iterdir()] == ["file"]


def test_the_vpn_client_keeps_its_key(computer, monkeypatch, tmp_path):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "here"))
    computer.connect([])
    copied_key = computer.state / "lab/vpn.key"
    assert copied_key.read_text() == tunnel.client_key().reveal()
    assert copied_key.stat().st_mode & 0o077 == 0


def test_the_environment_contains_nothing_of_the_first_controller(computer, monkeypatch):
    for name in ("MINIPC_STATE_DIR", "MINIPC_LAB_SECRETS_DIR", "MINIPC_AGE_KEY_FILE", "SSH_AUTH_SOCK", "VAULT_TOKEN"):
        monkeypatch.setenv(name, "/here")
    environment = computer.environment()
    assert "/here" not in environment.values()
    for name in ("HOME", "TMPDIR", "PYTHONPATH"):
        assert Path(environment[name]).is_relative_to(computer.root)
    assert os.listdir(computer.home) == []


def test_it_reaches_the_internet_as_the_first_controller_does(computer, monkeypatch):
    for name in ("HTTPS_PROXY", "SSL_CERT_FILE", "MINIPC_ARTIFACTS_OFFLINE"):
        monkeypatch.setenv(name, "given")
    environment = computer.environment()
    assert [name for name in environment if environment[name] == "given"] == [
        "MINIPC_ARTIFACTS_OFFLINE",
        "HTTPS_PROXY",
        "SSL_CERT_FILE",
    ]


def test_its_description_names_the_commit_and_the_copied_files(computer, checkout):
    assert str(computer) == f"empty HOME, clean clone of {git(checkout, 'rev-parse', 'HEAD')[:12]}"
    computer.copied = ["one", "two"]
    assert str(computer).endswith("with 2 uncommitted files copied into it")


def test_no_keys_are_copied_back_if_the_bundle_was_never_opened(computer):
    computer.copy_keys_back("mini")


def test_a_process_takes_part_in_the_run_and_ends_with_its_children(computer, monkeypatch, tmp_path):
    """A child must not go on changing a machine after the end of the process."""
    script = (
        "import os, subprocess, sys, time; "
        f"child = subprocess.Popen(['sleep', '60']); print(os.environ['{RUN_VARIABLE}'], child.pid, flush=True); "
        "time.sleep(60)"
    )
    monkeypatch.setattr(second_controller, "_MINIPC", (sys.executable, "-c", script))
    process = computer.start("rebuild", run=tmp_path, log=tmp_path / "log")
    try:
        while len((tmp_path / "log").read_text().split()) < 5:
            assert process.poll() is None
    finally:
        second_controller.end(process, signal.SIGKILL)
    *_, run, child = (tmp_path / "log").read_text().split()
    assert run == str(tmp_path)
    give_up_at = time.monotonic() + 20
    while (state := _state(child)) not in ("", "Z") and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert state in ("", "Z")


def _state(pid: str) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
