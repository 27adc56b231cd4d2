"""Checks of each service: what its file declares is there, works, and has no more rights than it needs."""

from __future__ import annotations

import json
import operator
import shlex
from functools import partial

import pytest

from minipc.core.formatting import one_line
from minipc.secrets.catalogue import postgres_password, redis_password
from minipc.services import image_policy
from tests.verify.conftest import eventually, not_exercised
from tests.verify.service import InK3s, UnderPodman

TABLES = r"""SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 1, 2"""


@pytest.fixture
def in_k3s(service):
    """Return the service in K3s. NOT EXERCISED where it runs under podman."""
    if not isinstance(service, InK3s):
        not_exercised("the services run under podman, not in K3s")
    return service


@pytest.fixture
def under_podman(service):
    """Return the service under podman. NOT EXERCISED where it runs in K3s."""
    if not isinstance(service, UnderPodman):
        not_exercised("the services run in K3s, not under podman")
    return service


@pytest.fixture
def database(service, settings):
    """Return the service's database and its roles. NOT EXERCISED if it has none."""
    if service.file.postgres is None:
        not_exercised(f"{service.file.name} has no database")
    return next(each for each in settings.postgres.databases if each.name == service.file.postgres.database)


@pytest.fixture
def tables(sql, database):
    """Return the tables of the service's database as SCHEMA.NAME, without the schema where that is `public`."""
    found = [line.partition("|") for line in sql(TABLES, database.name).splitlines() if line]
    return [name if schema == "public" else f"{schema}.{name}" for schema, _, name in found]


def test_every_process_runs(service):
    """Every process of the service runs with its declared number of replicas."""
    one = isinstance(service, UnderPodman)
    for name, process in service.file.processes.items():
        wanted = 1 if one else process.replicas
        found = eventually(partial(service.running, name), within_s=90, every_s=1, until=partial(operator.eq, wanted))
        assert found == wanted, f"{name}: {found} of {wanted} replicas are ready"


def test_it_is_alive_and_ready(service, direct):
    """The service answers on its live and ready paths, without the ingress."""
    if service.file.ingress is None:
        not_exercised(f"{service.file.name} has no ingress")
    for path in {service.file.health.live, service.file.health.ready}:
        answer = eventually(partial(direct, path), within_s=60, every_s=1, until=lambda found: found.code == 200)
        assert answer.code == 200, answer


def test_it_is_reached_through_the_ingress_only(service, public):
    """The service's own port is closed on the public side."""
    if service.file.ingress is None:
        not_exercised(f"{service.file.name} has no ingress")
    assert not public.reaches(service.file.ingress.node_port), "the node port answers on the public side"


def test_every_unit_is_enabled(under_podman, units):
    """Every unit of the service is started at boot."""
    for process in under_podman.file.processes:
        properties = units(under_podman.unit(process))
        assert properties["ActiveState"] == "active", process
        assert "multi-user.target" in properties["WantedBy"], process


def test_every_pod_has_only_what_it_needs(in_k3s):
    """Every pod of the service runs with few privileges."""
    for pod in (pod for process in in_k3s.file.processes for pod in in_k3s.pods(process)):
        spec, name = pod["spec"], pod["metadata"]["name"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec.get("automountServiceAccountToken") is False, name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False), name
            assert security["capabilities"] == {"drop": ["ALL"]}, name


def test_every_pod_runs_the_image_of_its_service(in_k3s):
    """Every pod runs an image of the service's own repository."""
    for pod in (pod for process in in_k3s.file.processes for pod in in_k3s.pods(process)):
        for container in pod["spec"]["containers"]:
            assert container["image"].startswith((f"{in_k3s.file.image}:", f"{in_k3s.file.image}@"))


def test_only_verified_images_start(in_k3s, sh):
    """The cluster starts only images whose signature was verified, and the running ones are among them."""
    if in_k3s.file.image_signer is None:
        not_exercised(f"{in_k3s.file.name} names no signer: its file has no image_signer")

    def answer(image):
        pod = shlex.quote(json.dumps(image_policy.probe(in_k3s.file.name, [image])))
        return sh(f"echo {pod} | {in_k3s.kubectl} create --dry-run=server -f - 2>&1 || true")

    refusal = image_policy.name_of(in_k3s.file.name)
    assert refusal in answer(f"{in_k3s.file.image}@sha256:{'0' * 64}")
    pods = [pod for process in in_k3s.file.processes for pod in in_k3s.pods(process)]
    for image in {container["image"] for pod in pods for container in pod["spec"]["containers"]}:
        assert refusal not in answer(image), f"{image}: `minipc release sync {in_k3s.file.name}` verifies it"


def test_its_namespace_is_closed(in_k3s, sh):
    """The service's namespace denies every connection that is not listed, and refuses privileged pods."""
    policies = json.loads(sh(f"{in_k3s.kubectl} get networkpolicies -o json"))["items"]
    closed = [each["spec"]["policyTypes"] for each in policies if each["spec"]["podSelector"] == {}]
    assert {direction for types in closed for direction in types} == {"Ingress", "Egress"}
    labels = json.loads(sh(f"k3s kubectl get namespace {in_k3s.file.name} -o json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_password_is_in_the_definition_of_a_pod(in_k3s, secrets):
    """No password is visible in a pod's definition."""
    names = [postgres_password(role) for role in in_k3s.file.postgres.roles[:2]] if in_k3s.file.postgres else []
    names += [redis_password(in_k3s.file.name)] if in_k3s.file.redis else []
    if not names:
        not_exercised(f"{in_k3s.file.name} has no password of ours")
    text = json.dumps([pod for process in in_k3s.file.processes for pod in in_k3s.pods(process)])
    for name in names:
        assert secrets[name].reveal() not in text, name


def test_each_data_class_has_its_tables(service, tables):
    """Every table that a data class names exists in the service's database."""
    declared = {table for each in service.file.data_classes.values() for table in each}
    if not declared:
        not_exercised(f"{service.file.name} declares no data classes: its file has no data_classes")
    missing = sorted(declared - set(tables))
    assert not missing, f"not in the database: {', '.join(missing)}"


def test_each_table_is_in_a_data_class(service, tables):
    """Every table of the service has a data class, so that a restore of it can be judged."""
    declared = {table for each in service.file.data_classes.values() for table in each}
    left = [one_line(table)[:80] for table in tables if table not in declared]
    if left:
        not_exercised(f"{service.file.name}: in no data class: {', '.join(left[:20])}")


def test_the_running_service_cannot_change_its_tables(database, sql):
    """The service's processes can read and write rows, but neither own nor change a table."""
    role = f"(SELECT oid FROM pg_roles WHERE rolname = '{database.runtime}')"
    owned = sql(f"SELECT count(*) FROM pg_class WHERE relowner = {role}", database.name)
    assert owned == "0", f"{database.runtime} owns {owned} objects"
    may = sql(f"SELECT has_schema_privilege('{database.runtime}', 'public', 'CREATE')", database.name)
    assert may == "f", f"{database.runtime} may create objects"


def test_every_process_with_metrics_publishes_them(service):
    """Every process that declares metrics publishes them."""
    names = [name for name, process in service.file.processes.items() if process.metrics]
    if not names:
        not_exercised(f"{service.file.name} declares no metrics")
    for name in names:
        assert eventually(partial(service.metrics, name), within_s=30, every_s=1), name


def test_each_volume_is_there(service, sh):
    """Every volume of the service exists and belongs to the service alone."""
    if not service.file.volumes:
        not_exercised(f"{service.file.name} has no volumes")
    for name in service.file.volumes:
        owner, mode = sh(f"stat -c '%u %a' /srv/minipc/volumes/{service.file.name}/{name}").split()
        assert (int(owner), mode) == (service.file.user, "700"), name


def test_a_process_that_ends_is_started_again(service, disturb):
    """A process that was stopped by hand runs again after it is started, and the service answers."""
    name = service.file.front[0] if service.file.front else next(iter(service.file.processes))
    service.stop(disturb, name)
    try:
        assert service.running(name) == 0
    finally:
        service.start(disturb, name)
    assert eventually(lambda: service.running(name) > 0, within_s=90, every_s=1)
