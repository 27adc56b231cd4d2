"""A service is stopped while its data is replaced: what is run on the machine, in which order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from minipc.services.stopping import start_script, stop_script
from tests.unit.service_files import BOOKINGS, TINY, service

# Notes each call; a deployment has two replicas, and the migration ends as the file `outcome` says.
K3S = """#!/bin/sh
echo "$*" >> "$LOG/calls"
case "$*" in
    *"get cronjobs"*) echo cronjob.batch/migrate; echo cronjob.batch/nightly;;
    *"get deployments"*) cat "$LOG/found";;
    *spec.replicas*) printf 2;;
    *annotations*) printf 2;;
    *"get job"*) cat "$LOG/outcome";;
    *logs*) echo "column exists";;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "k3s").write_text(K3S)
    (tmp_path / "k3s").chmod(0o755)
    (tmp_path / "found").write_text("deployment.apps/web\n")
    (tmp_path / "outcome").write_text("Complete")
    return tmp_path


def run(script: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    (folder / "calls").unlink(missing_ok=True)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "LOG": str(folder)}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, timeout=20)
    calls = (folder / "calls").read_text().replace("kubectl --namespace bookings ", "").splitlines()
    return done, calls


def test_in_k3s_everything_is_stopped_and_comes_back_with_its_replicas(cluster: Path) -> None:
    bookings = service(BOOKINGS)
    done, calls = run(stop_script(bookings, "k3s"), cluster)
    assert (done.returncode, done.stdout) == (0, "stopped\n")
    assert 'patch cronjob.batch/nightly -p {"spec":{"suspend":true}}' in calls
    assert calls[-3:] == [
        "annotate --overwrite deployment.apps/web minipc.local/replicas=2",
        "scale deployment.apps/web --replicas=0",
        "wait --for=delete pods --all --timeout=120s",
    ]
    done, calls = run(start_script(bookings, "k3s"), cluster)
    assert done.returncode == 0, done.stderr
    migrated = calls.index("create job import-migrate --from=cronjob/migrate")
    assert migrated < calls.index("scale deployment.apps/web --replicas=2")
    assert 'patch cronjob.batch/nightly -p {"spec":{"suspend":false}}' in calls
    assert not [call for call in calls if "patch cronjob.batch/migrate" in call], "it stays suspended"


def test_a_failed_migration_starts_nothing_and_shows_its_output(cluster: Path) -> None:
    (cluster / "outcome").write_text("FailureTarget Failed")
    done, calls = run(start_script(service(BOOKINGS), "k3s"), cluster)
    assert (done.returncode, done.stderr) == (1, "column exists\n")
    assert not [call for call in calls if "scale" in call]


def test_what_was_never_released_is_left_alone(cluster: Path) -> None:
    (cluster / "found").write_text("")
    done, calls = run(stop_script(service(BOOKINGS), "k3s"), cluster)
    assert (done.returncode, done.stdout, len(calls)) == (0, "", 1)


def test_under_podman_the_migration_runs_before_the_processes() -> None:
    bookings = service(BOOKINGS)
    stop, start = stop_script(bookings, "podman"), start_script(bookings, "podman")
    running = "minipc-bookings-web.service minipc-bookings-worker.service"
    assert stop.endswith(f"each stop minipc-bookings-nightly.timer {running}")
    assert start.index("restart minipc-bookings-migrate.service ||") < start.index("each start")
    assert start.endswith(f"each start minipc-bookings-nightly.timer {running}")
    assert "migrate" not in start_script(service(TINY), "podman")
    done = subprocess.run(
        ["sh", "-c", f"systemctl() {{ echo $*; }}; {stop}"], capture_output=True, text=True, timeout=20
    )
    assert done.stdout.splitlines() == ["stopped", *(f"stop {unit}" for unit in stop.split()[-3:])]
