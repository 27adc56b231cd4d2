"""Run promtool on this computer, where it is installed or the lab has its package."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from minipc.core.paths import cache_dir


@functools.cache
def program() -> str:
    """Return the path of promtool. Skip the test if there is none."""
    found = shutil.which("promtool")
    if found:
        return found
    packages = sorted(cache_dir("debs").glob("promtool_*_amd64.deb"))
    if not packages or not shutil.which("dpkg-deb"):
        pytest.skip("promtool is not installed, and the lab has not downloaded its package yet")
    folder = tempfile.mkdtemp(prefix="promtool-")
    subprocess.run(["dpkg-deb", "-x", str(packages[-1]), folder], check=True)
    return str(Path(folder, "usr/bin/promtool"))


def run(folder: Path, *arguments: str) -> str:
    """Run promtool in a folder and return what it printed; fail the test if it ends with an error."""
    done = subprocess.run([program(), *arguments], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (done.stdout + done.stderr)[:6000]
    return done.stdout


def evaluate(folder: Path, files: Mapping[str, str]) -> None:
    """Test rules with all files whose names end in `.test.yml`."""
    for name, content in files.items():
        (folder / name).write_text(content)
    tests = sorted(name for name in files if name.endswith(".test.yml"))
    assert run(folder, "test", "rules", *tests).count("SUCCESS") == len(tests)
