"""`minipc --version`: version and commit, in a checkout and from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from click.testing import CliRunner

from minipc.cli.main import cli
from minipc.core.paths import ROOT


def head() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout[:12]


def test_a_checkout_prints_its_commit(monkeypatch) -> None:
    monkeypatch.delenv("MINIPC_COMMIT", raising=False)
    shown = CliRunner().invoke(cli, ["--version"]).output
    assert shown.startswith(f"minipc {version('minipc')}, commit {head()}")


def test_a_wheel_prints_the_commit_that_it_was_built_from(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path), str(ROOT)], check=True, timeout=100)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "minipc.cli.main", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout == f"minipc {version('minipc')}, commit {head()}\n", done.stderr
