"""Test releases on a real cluster under load: good ones, every kind of bad one, the way back, and a manual change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from minipc.config.service import Service
from minipc.core.environment import LAB
from minipc.core.errors import RefusedError
from minipc.core.paths import ROOT
from minipc.gitops import application as argocd
from minipc.gitops import deploy_files
from minipc.gitops.cluster import SshCluster
from minipc.gitops.deploy_files import Version
from minipc.gitops.policy import ROOT as ROOT_APPLICATION
from minipc.gitops.repository import Repository, open_repository
from minipc.remote.inventory import the_target
from minipc.secrets.generate import generate
from minipc.services import images
from minipc.services.images import Missing, ServiceImage
from playbooks import deploy_repository, gitops
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab.inventory import entry
from rehearsal.lab.machine import load_all
from tests.lab.conftest import BIN, Done, converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800, func_only=True)]
NAME = f"test-release-{os.getpid()}"
OFFSITE = f"offsite-{NAME}"
EXAMPLE = ROOT / "examples/parking"
PACKAGE = next(path.parent.name for path in EXAMPLE.glob("*/__main__.py"))
# What a user would notice soon: the example's own check waits for two minutes.
SMOKE = [
    {"name": "the API answers", "request": {"path": "/api/livez"}},
    {"name": "the parking screen", "request": {"path": "/api/parking", "contains": "generated_at"}, "time_limit_s": 10},
    {"name": "the service finds itself", "command": ["openapi"]},
]
# Nothing but a process: no ingress, no database, no checks.
QUIET = {"image": "minipc.local/quiet", "build": str(EXAMPLE), "processes": {"main": {"entrypoint": ["sleep", "inf"]}}}

# A new column, as the rule for migrations has it: what is there stays.
EXPANDING = """
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE notification_settings ADD COLUMN quiet_hours text")
"""
BROKEN_MIGRATION = EXPANDING.replace("quiet_hours text", "quiet_hours no_such_type")
HANGING_MIGRATION = EXPANDING.replace("op.execute(", 'op.execute("SELECT pg_sleep(300)"); op.execute(')
# The process lives, but it is never ready: the worst kind of bad release.
NEVER_READY = """
@router.get("/api/readyz")
async def never() -> Response:
    return JSONResponse({"status": "fail"}, 503)


@router.get("/api/readyz")
"""
# It is ready, and one page is wrong.
WRONG_SCREEN = """
@router.get("/api/parking")
async def wrong() -> Response:
    return JSONResponse({"status": "fail"}, 500)


@router.get("/api/parking")
"""
# Wrong only where users reach it.
WRONG_BEHIND_THE_SERVICE = """
import os


@router.get("/api/livez" if "canary" in os.environ["HOSTNAME"] else "/api/parking")
async def wrong() -> Response:
    return JSONResponse({"status": "ok"}, 200 if "canary" in os.environ["HOSTNAME"] else 500)


@router.get("/api/parking")
"""


@dataclass
class Users:
    """Answers that users got, and for failures the ingress's view of the service."""

    total: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    ingress_log: str = ""


@contextmanager
def users(machine: lab.Machine, domain: str) -> Iterator[Users]:
    """Send requests through the public ingress, from the public side, while the block runs."""
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
            seen.ingress_log = on(machine, "journalctl -u caddy -o cat --since -5min | grep health_checker || true")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Service files of this test: the example with its checks, and a second service."""
    made = tmp_path_factory.mktemp("services")
    shutil.copytree(EXAMPLE / "services", made, dirs_exist_ok=True)
    # Questions, rules and log queries have a second dot in their names.
    (source,) = (path for path in made.glob("*.yaml") if "." not in path.stem)
    example = yaml.safe_load(source.read_text()) | {"smoke": SMOKE, "build": str(EXAMPLE)}
    example.pop("verify", None)
    for path, content in ((source, example), (made / "quiet.yaml", QUIET)):
        path.write_text(yaml.safe_dump(content))
    before, os.environ["MINIPC_SERVICES"] = os.environ.get("MINIPC_SERVICES", ""), str(made)
    yield made
    os.environ["MINIPC_SERVICES"] = before


@pytest.fixture(scope="module")
def cluster(lab_ready: None, folder: Path) -> Iterator[lab.Machine]:
    """Provide a mini PC with two released services in K3s. The off-site host has its deploy repository."""
    absent = deploy_repository.missing()
    if absent:
        pytest.skip(f"NOT EXERCISED: no {', '.join(absent)} on this controller")
    names = [OFFSITE, NAME]
    lab.down(names)
    try:
        generate("lab")
        machines = [lab.up(name, disk_gb=12, k3s=name == NAME) for name in names]
        for machine in machines:
            adopt(LAB, entry(machine), machine.host_key_fingerprint)
        targets = [the_target(LAB, name) for name in names]
        for service in targets[1].settings.services.declared:
            found = images.ensure(service)
            if isinstance(found, Missing):
                pytest.skip(f"NOT EXERCISED: {found.reason}")
        for machine in machines:
            done = converge(machine)
            assert done.code == 0, done.output[-4000:]
            if machine.name == OFFSITE:
                deploy_repository.fill(targets[1], targets[0])
        said = gitops.bring_up(LAB, targets[1])
        assert "quiet: " in said
        assert "NOT EXERCISED: it declares no smoke checks" in said
        yield machines[1]
    finally:
        lab.down(names)


@pytest.fixture(scope="module")
def service(cluster: lab.Machine) -> Service:
    """The service with an ingress."""
    return next(each for each in the_target(LAB, cluster.name).settings.services.declared if each.ingress)


@pytest.fixture(scope="module")
def repository(cluster: lab.Machine) -> Repository:
    target = the_target(LAB, cluster.name)
    return open_repository(target, argocd.read(SshCluster(target), ROOT_APPLICATION))


@pytest.fixture(scope="module")
def publish(cluster: lab.Machine, service: Service, repository: Repository, tmp_path_factory: pytest.TempPathFactory):
    """Do what CI does: build an image of changed code, copy it to the machine, commit the release."""

    def make(name: str, change: Callable[[Path], None], *, copied: bool = True) -> ServiceImage:
        directory = tmp_path_factory.mktemp("code") / "code"
        shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("__pycache__"))
        change(directory / PACKAGE)
        made = images.ensure(service.model_copy(update={"build": str(directory)}))
        images.ensure(service)
        assert not isinstance(made, Missing)
        if copied:
            with made.path.open("rb") as file:
                argv = lab.ssh_command(cluster, "k3s", "ctr", "-n", "k8s.io", "images", "import", "-")
                subprocess.run(argv, stdin=file, check=True, timeout=300, capture_output=True)
        write(repository, service, deploy_files.of_image(made), name)
        return made

    return make


def write(repository: Repository, service: Service, version: Version, subject: str) -> None:
    path = deploy_files.release_file(service.name, "lab")
    repository.write(path, deploy_files.release(service, version).decode(), f"Release {version.name[:12]}: {subject}")


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(code: Path) -> None:
        text = (code / name).read_text()
        assert old in text
        (code / name).write_text(text.replace(old, new, 1))

    return change


def migration(text: str) -> Callable[[Path], None]:
    return lambda code: (code / "migrations/versions/0002_quiet_hours.py").write_text(text) and None


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda code: [each(code) for each in changes] and None


NEVER = edited("api.py", '@router.get("/api/readyz")\n', NEVER_READY)
WRONG = edited("api.py", '@router.get("/api/parking")\n', WRONG_SCREEN)
WRONG_LATER = edited("api.py", '@router.get("/api/parking")\n', WRONG_BEHIND_THE_SERVICE)
CRASH = edited(
    "api.py", "from __future__ import annotations\n", 'from __future__ import annotations\nint("no number")\n'
)


@pytest.fixture(scope="module")
def act(cluster: lab.Machine):
    def command(*argv: str) -> Done:
        return run("minipc", *argv, "--inventory", "lab", "--host", cluster.name, timeout_s=900)

    return command


@dataclass(frozen=True)
class Story:
    """Make releases. Returns what was seen meanwhile."""

    good: tuple[ServiceImage, Done, Users]
    traced: Done
    bad: tuple[ServiceImage, Done, Users]
    wrong: tuple[ServiceImage, Done, Users]
    serving: Done
    back: tuple[Done, Users]
    oldest: tuple[Done, Users]
    first: str


@pytest.fixture(scope="module")
def story(cluster, service, publish, act, repository) -> Story:
    first = repository.head

    def release(*argv: str) -> tuple[Done, Users]:
        command, *more = argv
        with users(cluster, service.domain) as seen:
            done = act("release", command, service.name, *more, "--yes")
        return done, seen

    expand = migration(EXPANDING)
    good = (publish("expand", expand), *release("sync"))
    traced = act("trace", f"https://{service.domain}/api/parking")
    bad = (publish("never ready", both(expand, NEVER)), *release("sync"))
    wrong = (publish("wrong screen", both(expand, WRONG)), *release("sync"))
    serving = act("release", "status", service.name)
    released = repository.released("lab", service.name)[0].hash
    return Story(good, traced, bad, wrong, serving, release("rollback", "--to", released), release("rollback"), first)


def test_a_good_release_fails_no_request(story):
    _, done, seen = story.good
    assert done.code == 0, done.output
    assert "3 smoke checks passed" in done.output
    assert done.output.index("migrate") < done.output.index("canary") < done.output.index("PASS")
    assert seen.failed == [], seen.ingress_log
    assert seen.total > 100


def test_an_answer_is_traced_to_the_image_and_the_commit(story):
    made, _, _ = story.good
    assert story.traced.code == 0, story.traced.output
    for part in (made.digest, made.revision[:12], "rollout", "minipc release ("):
        assert part in story.traced.output


def test_a_release_that_is_never_ready_fails_no_request_and_changes_nothing(story):
    _, done, seen = story.bad
    assert done.code == 1, done.output
    assert "a pod of the new version does not become ready" in done.output
    assert "the version before keeps serving" in done.output
    assert seen.failed == [], seen.ingress_log
    assert seen.total > 100


def test_a_release_that_answers_wrongly_never_reaches_users(story):
    _, done, seen = story.wrong
    assert done.code == 1, done.output
    assert "GET /api/parking answered 500, expected 200" in done.output
    assert seen.failed == [], seen.ingress_log


def test_what_failed_before_the_switch_is_still_pending(story):
    assert story.serving.code == 2, story.serving.output
    assert "wrong screen" in story.serving.output


def test_a_rollback_passes_and_fails_no_request(story):
    done, seen = story.back
    assert done.code == 0, done.output
    assert seen.failed == [], seen.ingress_log
    assert "back to: Deployment api" in done.output


def test_the_previous_version_runs_on_the_newer_schema(story, service, cluster):
    done, seen = story.oldest
    assert done.code == 0, done.output
    assert seen.failed == [], seen.ingress_log
    query = (
        f"runuser -u postgres -- psql -XAtq -d {service.postgres.database} -c 'SELECT version_num FROM schema_version'"
    )
    assert on(cluster, f"cd /; {query}").strip() == "0002"


def test_the_other_service_was_left_alone(story, cluster, repository):
    assert repository.same(story.first, repository.head, "quiet/lab")
    assert on(cluster, "k3s kubectl get -n quiet deployment/main -o jsonpath={.status.availableReplicas}") == "1"


def test_a_manual_change_is_named_and_a_sync_reverts_it(story, service, cluster, act):
    assert act("release", "status", service.name).code == 0
    worker = next(name for name, each in service.processes.items() if not each.port)
    on(cluster, f"k3s kubectl scale -n {service.name} deployment/{worker} --replicas=2")
    seen = act("release", "status", service.name, "--diff")
    assert seen.code == 2, seen.output
    assert f"Deployment {worker}" in seen.output
    assert "(by kubectl" in seen.output
    assert "-  replicas: 2" in seen.output
    metrics = on(
        cluster, "systemctl start minipc-gitops-drift && cat /var/lib/prometheus/node-exporter/minipc_gitops.prom"
    )
    assert f'minipc_gitops_drift_objects{{service="{service.name}"}} 1' in metrics
    assert 'minipc_gitops_drift_objects{service="quiet"} 0' in metrics
    assert act("release", "sync", service.name, "--yes").code == 0
    assert on(cluster, f"k3s kubectl get -n {service.name} deployment/{worker} -o jsonpath={{.spec.replicas}}") == "1"
    assert act("release", "status", service.name).code == 0


# --- why a release fails ---------------------------------------------------------------------------------------------


@pytest.fixture
def restored(story, service, repository) -> Iterator[None]:
    """Put the desired state back afterwards."""
    before = repository.head
    yield
    if not repository.same(before, repository.head, service.name):
        repository.restore(before, f"{service.name}/lab", "Back to what runs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (CRASH, ["CrashLoopBackOff", "ValueError: invalid literal for int()"]),
        (migration(BROKEN_MIGRATION), ["✗ migrate", 'type "no_such_type" does not exist']),
    ],
    ids=["crash", "migration"],
)
def test_the_output_of_what_crashed_is_shown(restored, service, publish, act, change, words):
    publish("crash", change)
    done = act("release", "sync", service.name, "--yes")
    assert done.code == 1, done.output
    for word in words:
        assert word in done.output


def test_an_image_that_is_not_there_is_named(restored, service, repository, act):
    write(repository, service, Version(service.image, "v0", "sha256:" + "0" * 64, "v0"), "no image")
    done = act("release", "sync", service.name, "--yes")
    assert done.code == 1, done.output
    assert "Image" in done.output
    assert "minipc service image" in done.output
    assert "DeadlineExceeded" not in done.output


def test_a_secret_that_is_not_there_is_named(restored, service, cluster, publish, act):
    key = on(cluster, f"k3s kubectl get secret -n {service.name} {service.name} -o json")
    name = sorted(json.loads(key)["data"])[0]
    on(cluster, f"k3s kubectl patch secret -n {service.name} {service.name} --type json -p "
       f"'[{{\"op\": \"remove\", \"path\": \"/data/{name}\"}}]'")  # fmt: skip
    try:
        publish("another version", edited("api.py", "\n", "\n# another version\n"))
        done = act("release", "sync", service.name, "--yes")
    finally:
        on(cluster, f"k3s kubectl replace -f - <<'EOF'\n{strip(key)}\nEOF")
    assert done.code == 1, done.output
    assert name in done.output


def strip(text: str) -> str:
    """The object without what the cluster adds."""
    found = json.loads(text)
    for key in ("resourceVersion", "uid", "creationTimestamp", "managedFields"):
        found["metadata"].pop(key, None)
    return json.dumps(found)


def test_a_pod_that_finds_no_room_is_named(restored, service, repository, act):
    front, process = service.front
    large = service.model_copy(
        update={"processes": {**service.processes, front: process.model_copy(update={"memory_mb": 262144})}}
    )
    for path, content in deploy_files.of_service(large, "lab").items():
        repository.write(path, content.decode(), "Far too much memory")
    done = act("release", "sync", service.name, "--yes")
    assert done.code == 1, done.output
    assert "exceeded quota" in done.output or "Unschedulable" in done.output or "must be less than" in done.output


def test_a_release_can_be_stopped_and_rolled_back(restored, service, cluster, publish, act):
    sql = "UPDATE schema_version SET version_num = '0001'; ALTER TABLE notification_settings DROP COLUMN quiet_hours"
    lab.run(cluster, ["runuser", "-u", "postgres", "--", "psql", "-Xq", "-d", service.postgres.database], stdin=sql)
    publish("hangs", migration(HANGING_MIGRATION))
    argv = [BIN / "minipc", "release", "sync", service.name, "--yes", "--inventory", "lab", "--host", cluster.name]
    releasing = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    try:
        give_up_at = time.monotonic() + 120
        while "release-migrate" not in act("release", "status", service.name).output:
            assert time.monotonic() < give_up_at
        stopped = act("release", "stop", service.name, "--yes")
        assert stopped.code == 0, stopped.output
        assert "job/release-migrate" in stopped.output
        output, _ = releasing.communicate(timeout=60)
    finally:
        releasing.kill()
    assert releasing.returncode == 1
    assert "it was stopped" in output
    assert "release-migrate" not in on(cluster, f"k3s kubectl get jobs -n {service.name} -o name")


def test_a_release_is_rolled_back_automatically_where_that_is_declared(restored, service, folder, publish, act):
    path = folder / f"{service.name}.yaml"
    before = path.read_text()
    path.write_text(before + "rollback: automatic\n")
    try:
        publish("wrong behind the service", WRONG_LATER)
        done = act("release", "sync", service.name, "--yes")
    finally:
        path.write_text(before)
    assert done.code == 1, done.output
    assert "rollback: automatic; going back to" in done.output
    assert done.output.rstrip().endswith("smoke checks passed"), done.output
    assert act("release", "status", service.name).code == 0


# --- an attacker who can write the deploy repository -----------------------------------------------------------------

BINDING = """
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: attack}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: default, namespace: argocd}]
"""
# As root on the machine that hosts the repository: a commit on top, or history replaced.
PUSH = """
set -eu
cd "$(mktemp -d)"
git clone -q /srv/minipc-offsite/git/deploy.git work
cd work
{before}
cat >> argocd/install.yaml
git add --all
git -c user.name=x -c user.email=x@example.org commit -qm attack
git push -q --force origin HEAD:main
"""


def _offsite() -> lab.Machine:
    (found,) = [each for each in load_all() if each.name == OFFSITE]
    return found


@pytest.fixture(params=["true", "git checkout -q --orphan attack"], ids=["on top", "history replaced"])
def attacked(request, story, cluster: lab.Machine) -> Iterator[str]:
    """The deploy repository after the attack; put back afterwards."""
    offsite = _offsite()
    git = "git --git-dir /srv/minipc-offsite/git/deploy.git"
    before = on(offsite, f"{git} rev-parse main").strip()
    lab.run(offsite, ["bash", "-c", PUSH.replace("{before}", request.param)], stdin=BINDING)
    try:
        yield before
    finally:
        on(offsite, f"{git} update-ref refs/heads/main {before}")


def test_what_an_attacker_pushed_is_shown_and_not_synced(attacked, service, cluster, act):
    commands = (("argocd", "sync"), ("release", "sync", service.name), ("release", "rollback", service.name))
    for command in commands:
        done = act(*command, "--yes")
        assert done.code == 3, done.output
        if command[0] == "argocd":
            assert "cluster-admin" in done.output
    assert act("release", "status", service.name).code == 3
    assert on(cluster, "k3s kubectl get clusterrolebinding attack --ignore-not-found") == ""


def test_a_rebuild_takes_nothing_that_an_attacker_pushed(attacked, cluster):
    """Also where ArgoCD has synced nothing yet, which is what a rebuild finds."""
    target = the_target(LAB, cluster.name)
    for name in ("argocd", "root"):
        patch = json.dumps({"status": {"history": None}})
        on(cluster, f"k3s kubectl patch applications.argoproj.io {name} -n argocd --type merge -p '{patch}'")
    git = f"git --git-dir /srv/minipc-offsite/git/deploy.git merge-base --is-ancestor {attacked} main"
    if lab.run(_offsite(), ["bash", "-c", git], check=False).returncode:
        with pytest.raises(RefusedError, match="does not contain commit"):
            gitops.bring_up(LAB, target)
    else:
        gitops.bring_up(LAB, target)
    assert on(cluster, "k3s kubectl get clusterrolebinding attack --ignore-not-found") == ""


def test_argocd_itself_refuses_what_its_projects_do_not_name(story, service, cluster):
    """The second wall: a sync past the controller's checks, as somebody with ArgoCD's own password would start it."""
    programs = ["argocd-application-controller", "argocd-server"]
    for project, kinds in ((service.name, []), ("quiet", []), ("system", programs)):
        text = on(cluster, f"k3s kubectl get appproject {project} -n argocd -o json")
        allowed = json.loads(text)["spec"].get("clusterResourceWhitelist", [])
        assert sorted(each["name"] for each in allowed if each["kind"] == "ClusterRoleBinding") == kinds


def test_a_service_that_is_removed_leaves_nothing_in_the_cluster(story, folder, cluster, repository, act, tmp_path):
    """The commands of docs/howto/your-own-service.md. It is the last test, because the service does not come back."""
    (folder / "quiet.yaml").unlink()
    done = converge(cluster)
    assert done.code == 0, done.output[-4000:]
    get = "k3s kubectl get -o name"
    assert on(cluster, f"{get} namespaces | grep quiet || true") == ""

    archive = lab.ssh_command(_offsite(), "git", "--git-dir", "/srv/minipc-offsite/git/deploy.git", "archive", "main")
    content = subprocess.run(archive, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "--extract", "--directory", tmp_path], input=content, check=True)
    assert act("service", "render", "--into", str(tmp_path)).code == 0
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [path for path in files if "quiet" in path]
    repository.replace(files, "Remove quiet")
    done = act("argocd", "sync", "--yes")
    assert done.code == 0, done.output
    assert on(cluster, f"{get} -n argocd applications.argoproj.io,appprojects.argoproj.io | grep quiet || true") == ""
    assert "quiet" not in repository.trust.approvals.commits()
