"""Runs tests/lab/test_workload_app.py where it belongs: inside a Debian 13 machine, on the packages users get."""

from __future__ import annotations

import io
import subprocess
import tarfile

import pytest

from minipc.lab import machine, run, ssh_command
from minipc.paths import ROOT

PATHS = [
    "workload",
    "gitops/ci",
    "tests/__init__.py",
    "tests/lab/__init__.py",
    "tests/lab/test_workload_app.py",
    "tests/workload_receiver.py",
]
TEST_PACKAGES = ["postgresql-17", "redis-server", "python3-pytest", "procps"]
PYTEST = "python3 -B -m pytest --noconftest -c /dev/null --rootdir=. -q --color=no --tb=short -W ignore"


@pytest.mark.lab
@pytest.mark.timeout(900)
def test_the_wired_workload_in_a_machine() -> None:
    packages = [*(ROOT / "workload/packages.txt").read_text().split(), *TEST_PACKAGES]
    install = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in PATHS:
            tar.add(ROOT / path, path)
    with machine("workload-app") as target:
        run(target, ["sh", "-c", f"{install} {' '.join(packages)}"], timeout=300)
        run(target, ["mkdir", "/root/checkout"])
        unpack = ssh_command(target, "tar", "-x", "-C", "/root/checkout")
        subprocess.run(unpack, input=archive.getvalue(), check=True, timeout=60)
        command = f"cd /root/checkout && {PYTEST} tests/lab/test_workload_app.py"
        done = run(target, ["sh", "-c", command], check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
