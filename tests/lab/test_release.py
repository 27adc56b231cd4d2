"""Releases on a real cluster, while users never stop: a good one, a bad one, the way back, and a change by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from minipc import lab
from minipc.gitops import application as argocd
from minipc.gitops.cluster import SshCluster
from minipc.gitops.repository import Repository, open_repository
from minipc.inventory import the_target
from minipc.lab.inventory import entry, pin_lab_machine
from minipc.paths import ROOT
from minipc.secrets.generate import generate
from minipc.workload import image as images
from minipc.workload import oci
from playbooks import gitops
from playbooks.adopt import adopt
from tests.lab.conftest import Done, converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800, func_only=True)]
NAME = f"test-release-{os.getpid()}"
OFFSITE = f"offsite-{NAME}"
RELEASE = "workload/overlays/lab/release/kustomization.yaml"

# A new column, as the rule for migrations has it: what is there stays.
EXPANDING = """
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE notification_settings ADD COLUMN quiet_hours text")
"""
# The process lives, but it is never ready: the worst kind of bad release.
NEVER_READY = """
@router.get("/api/readyz")
async def never() -> Response:
    return JSONResponse({"status": "fail"}, 503)


@router.get("/api/readyz")
"""


@dataclass
class Users:
    """What the users saw, and where they saw failures, what the door saw behind it."""

    total: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    door: str = ""


@contextmanager
def users(machine: lab.Machine, domain: str) -> Iterator[Users]:
    """Requests through the public door, from the public side, for as long as the block runs."""
    seen = Users()
    command = ["ip", "netns", "exec", "public", sys.executable, ROOT / "tests/lab/request_loop.py"]
    process = subprocess.Popen(
        [*command, machine.public_ipv4, domain], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield seen
    finally:
        output, _ = process.communicate(timeout=60)
        found = json.loads(output)
        seen.total, seen.failed = found["total"], found["failed"]
        if seen.failed:
            seen.door = on(machine, "journalctl -u caddy -o cat --since -5min | grep health_checker || true")


@pytest.fixture(scope="module")
def cluster(lab_ready: None) -> Iterator[lab.Machine]:
    """A mini PC with the service in K3s, released once; the off-site machine has its deploy repository."""
    absent = gitops.missing()
    if absent:
        pytest.skip(f"NOT EXERCISED: no {', '.join(absent)} on this controller")
    names = [OFFSITE, NAME]
    lab.down(names)
    try:
        images.ensure()
        generate("lab")
        machines = [lab.up(name, disk_gb=12, k3s=name == NAME) for name in names]
        for machine in machines:
            adopt(entry(machine), machine.host_key_fingerprint, pin_lab_machine)
        targets = [the_target("lab", name) for name in names]
        for machine in machines:
            done = converge(machine)
            assert done.code == 0, done.output[-4000:]
            if machine.name == OFFSITE:
                gitops.fill(targets[1], targets[0])
        gitops.bring_up("lab", targets[1])
        yield machines[1]
    finally:
        lab.down(names)


@pytest.fixture(scope="module")
def domain(cluster: lab.Machine) -> str:
    return the_target("lab", cluster.name).settings.edge.domain


@pytest.fixture(scope="module")
def repository(cluster: lab.Machine) -> Repository:
    target = the_target("lab", cluster.name)
    return open_repository(target, argocd.read(SshCluster(target)))


@pytest.fixture(scope="module")
def publish(cluster: lab.Machine, repository: Repository, tmp_path_factory: pytest.TempPathFactory):
    """What CI does: builds an image of changed code, brings it to the machine, commits the release."""

    def make(name: str, change: Callable[[Path], None]) -> oci.Image:
        directory = tmp_path_factory.mktemp(name)
        shutil.copytree(ROOT / "workload", directory / "workload", ignore=shutil.ignore_patterns("__pycache__"))
        change(directory / "workload/minipc_workload")
        git = ["git", "-C", directory, "-c", "user.name=ci", "-c", "user.email=ci@example.org"]
        for argv in (["init", "-q"], ["add", "."], ["commit", "-qm", name]):
            subprocess.run([*git, *argv], check=True, timeout=30)
        archive = directory / "image.tar"
        made = images.build(images.source(directory / "workload"), archive)
        with archive.open("rb") as file:
            argv = lab.ssh_command(cluster, "k3s", "ctr", "-n", "k8s.io", "images", "import", "-")
            subprocess.run(argv, stdin=file, check=True, timeout=300, capture_output=True)
        reference, _, tag = made.reference.rpartition(":")
        argv = ["--image", reference, "--tag", tag, "--digest", made.digest, "--commit", tag]
        script = [sys.executable, ROOT / "gitops/ci/checks/set_release.py", *argv]
        text = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        repository.write(RELEASE, text, f"Release {tag[:12]}: {name}")
        return made

    return make


@pytest.fixture(scope="module")
def act(cluster: lab.Machine):
    def command(*argv: str) -> Done:
        return run("minipc", *argv, "--inventory", "lab", "--host", cluster.name, timeout_s=900)

    return command


@dataclass(frozen=True)
class Story:
    """Three releases, and what was seen meanwhile."""

    good: tuple[oci.Image, Done, Users]
    traced: Done
    bad: tuple[oci.Image, Done, Users]
    serving: Done
    back: tuple[Done, Users]
    oldest: tuple[Done, Users]


@pytest.fixture(scope="module")
def story(cluster, domain, publish, act, repository) -> Story:
    first = repository.head

    def expand(code: Path) -> None:
        (code / "migrations/versions/0002_quiet_hours.py").write_text(EXPANDING)

    def spoil(code: Path) -> None:
        expand(code)
        api = code / "api.py"
        text = api.read_text()
        assert '@router.get("/api/readyz")\n' in text
        api.write_text(text.replace('@router.get("/api/readyz")\n', NEVER_READY, 1))

    def release(*argv: str) -> tuple[Done, Users]:
        with users(cluster, domain) as seen:
            done = act("release", *argv, "--yes")
        return done, seen

    good = (publish("expand", expand), *release("sync"))
    traced = act("trace", f"https://{domain}/api/parking")
    bad = (publish("never ready", spoil), *release("sync"))
    serving = act("release", "status")
    return Story(good, traced, bad, serving, release("rollback"), release("rollback", first))


def test_a_good_release_fails_no_request(story):
    _, done, seen = story.good
    assert done.code == 0, done.output
    assert "PASS" in done.output
    assert seen.failed == [], seen.door
    assert seen.total > 100


def test_an_answer_leads_back_to_the_image_and_the_commit(story):
    made, _, _ = story.good
    assert story.traced.code == 0, story.traced.output
    for part in (made.digest, made.labels["org.opencontainers.image.revision"][:12], "rollout", "minipc release ("):
        assert part in story.traced.output


def test_a_bad_release_fails_and_fails_no_request(story):
    """Not ready within 30 s: it is marked failed, the old pods keep serving, nobody notices."""
    _, done, seen = story.bad
    assert done.code == 1, done.output
    assert "progress deadline" in done.output
    assert "2 pods of the API keep serving" in done.output
    assert seen.failed == [], seen.door
    assert seen.total > 100


def test_the_state_after_a_bad_release_is_said(story):
    assert story.serving.code == 1, story.serving.output
    assert "Failed" in story.serving.output


def test_a_rollback_passes_and_fails_no_request(story):
    done, seen = story.back
    assert done.code == 0, done.output
    assert seen.failed == [], seen.door
    assert "back to: Deployment api" in done.output


def test_the_version_before_runs_on_the_newer_schema(story, cluster):
    done, seen = story.oldest
    assert done.code == 0, done.output
    assert seen.failed == [], seen.door
    query = "runuser -u postgres -- psql -XAtq -d workload -c 'SELECT version_num FROM schema_version'"
    assert on(cluster, f"cd /; {query}").strip() == "0002"
    logs = on(cluster, "k3s kubectl logs -n workload job/migrate")
    assert "schema is newer than this code" in logs


def test_a_change_by_hand_is_named_and_a_sync_puts_it_back(story, cluster, act):
    assert act("release", "status").code == 0
    on(cluster, "k3s kubectl scale -n workload deployment/push --replicas=2")
    seen = act("release", "status", "--diff")
    assert seen.code == 2, seen.output
    assert "Deployment push" in seen.output
    assert "(by kubectl" in seen.output
    assert "-  replicas: 2" in seen.output
    assert act("release", "sync", "--yes").code == 0
    assert on(cluster, "k3s kubectl get -n workload deployment/push -o jsonpath={.spec.replicas}") == "1"
    assert act("release", "status").code == 0
