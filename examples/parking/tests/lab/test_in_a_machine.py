"""Run the tests of the reference service inside a Debian 13 machine, on the packages that users get."""

from __future__ import annotations

import io
import subprocess
import tarfile

import pytest

from minipc.core.paths import ROOT
from rehearsal.lab import machine, run, ssh_command

PATHS = ["examples/parking"]
TEST_PACKAGES = ["postgresql-17", "redis-server", "python3-pytest", "mypy", "procps"]
PYTEST = "python3 -B -m pytest --noconftest -c /dev/null --rootdir=. -q --color=no --tb=short -W ignore"


@pytest.mark.lab
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_reference_service_in_a_machine() -> None:
    packages = [*(ROOT / "examples/parking/packages.txt").read_text().split(), *TEST_PACKAGES]
    install = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in PATHS:
            tar.add(ROOT / path, path)
    with machine("parking-app") as target:
        run(target, ["sh", "-c", f"{install} {' '.join(packages)}"], timeout=300)
        run(target, ["mkdir", "/root/checkout"])
        unpack = ssh_command(target, "tar", "-x", "-C", "/root/checkout")
        subprocess.run(unpack, input=archive.getvalue(), check=True, timeout=60)
        types = "(cd examples/parking && mypy --strict --cache-dir=/tmp/mypy minipc_workload)"
        command = f"cd /root/checkout && {types} && cd examples/parking && {PYTEST} tests/test_*.py"
        done = run(target, ["sh", "-c", command], check=False, timeout=580)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
