"""The workload's image, built for real: twice the same, and able to run as the manifests run it."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from minipc.workload import image, oci

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
PROCESSES = "from minipc_workload import api, migrate, smoke, worker"


@pytest.fixture(scope="module")
def built(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two archives of the same code, their packages' layers built one after the other."""
    paths = [tmp_path_factory.mktemp("image") / f"{number}.tar" for number in (1, 2)]
    for path in paths:
        image.build(image.source(), path, fresh=True)
    return paths


def test_built_twice_it_has_the_same_digest(built):
    first, second = map(oci.read, built)
    assert first.digest == second.digest
    assert first == second


def test_its_processes_start_as_its_user_on_a_read_only_root(built, tmp_path):
    with tarfile.open(built[0]) as tar:
        (listing,) = json.load(tar.extractfile("manifest.json"))
        for layer in listing["Layers"]:
            with tarfile.open(fileobj=tar.extractfile(layer)) as files:
                files.extractall(tmp_path, filter="tar")
        config = json.load(tar.extractfile(listing["Config"]))["config"]
    (tmp_path / "dev").mkdir()
    # What a container runtime gives: /dev/null is needed to find libpq.
    mount = f"mount -B {tmp_path} {tmp_path}; mount -o remount,bind,ro {tmp_path}; "
    mount += f"mount -t tmpfs tmpfs {tmp_path}/dev; touch {tmp_path}/dev/null; mount -B /dev/null {tmp_path}/dev/null; "
    mount += f"exec chroot --userspec={config['User']} {tmp_path} "
    run = ["unshare", "--mount", "sh", "-ec", mount + '/usr/bin/env -i "$@"', "sh", *config["Env"], "python3"]
    done = subprocess.run([*run, "-c", PROCESSES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*run, "-m", "minipc_workload", "api"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "DATABASE_HOST is not set" in json.loads(done.stdout)["message"]
