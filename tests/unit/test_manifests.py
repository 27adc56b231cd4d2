"""The Kubernetes objects of a service: hardened, complete, and the same under podman."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from minipc.config.service import Service
from minipc.config.services import read
from minipc.gitops.policy import violations
from minipc.services.environment import programs
from minipc.services.manifests import Image, PodmanHost, for_podman, objects
from tests.unit.service_files import BOOKINGS, TINY, service

EXAMPLES = [*read(["examples/parking/services"]), service(BOOKINGS), service(TINY)]
IMAGE = Image("ghcr.io/you/bookings:v2", "v2", "sha256:00")


def pods(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the pod specification of each object that has one."""
    for each in found:
        match each["kind"]:
            case "Deployment" | "Job":
                yield each["spec"]["template"]["spec"]
            case "CronJob":
                yield each["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            case "Pod":
                yield each["spec"]


def named(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name))


def container(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    result: dict[str, Any] = next(pods([named(found, kind, name)]))["containers"][0]
    return result


@pytest.mark.parametrize("each", EXAMPLES, ids=lambda each: each.name)
def test_every_pod_satisfies_the_restricted_level(each: Service) -> None:
    found = objects(each, "production")
    for part in programs(each):
        found += for_podman(each, "production", IMAGE, part, PodmanHost("10.0.0.1"), {})
    specs = list(pods(found))
    assert len(specs) == 2 * len(programs(each))
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["runAsGroup"] == each.user
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for own in spec["containers"]:
            context = own["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert own["resources"]["limits"]["memory"].endswith("Mi")
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


@pytest.mark.parametrize("each", EXAMPLES, ids=lambda each: each.name)
def test_the_deploy_repository_may_hold_every_object(each: Service) -> None:
    assert list(violations(each.name, objects(each, "lab"), "ssh://git@example/repository")) == []


def test_the_front_process_is_reached_by_the_ingress_and_probed_by_its_own_name() -> None:
    found = objects(service(BOOKINGS), "production")
    assert named(found, "Service", "web")["spec"]["type"] == "NodePort"
    assert named(found, "Service", "web")["spec"]["ports"] == [
        {"name": "http", "port": 8000, "targetPort": "http", "nodePort": 30081}
    ]
    asked = container(found, "Deployment", "web")["startupProbe"]["httpGet"]
    assert asked["path"] == "/healthz"
    assert {"name": "Host", "value": "bookings.example"} in asked["httpHeaders"]


def test_variables_are_literal_or_come_from_the_secret() -> None:
    found = objects(service(BOOKINGS), "production")
    web = {each["name"]: each for each in container(found, "Deployment", "web")["env"]}
    assert web["DATABASE_URL"]["valueFrom"]["secretKeyRef"] == {"name": "bookings", "key": "DATABASE_URL"}
    assert web["RELEASE"]["value"] == "bookings@$(MINIPC_VERSION)"
    assert web["LITERAL"]["value"] == "$$(HOME) and {braces}", "Kubernetes must not replace it"
    names = [each["name"] for each in container(found, "Deployment", "web")["env"]]
    assert names.index("MINIPC_VERSION") < names.index("RELEASE")
    migrate = {each["name"]: each for each in container(found, "CronJob", "migrate")["env"]}
    assert migrate["DATABASE_URL"]["valueFrom"]["secretKeyRef"]["name"] == "bookings-migrate"


def test_the_migration_is_suspended_and_cron_jobs_run_once_at_a_time_in_utc() -> None:
    found = objects(service(BOOKINGS), "production")
    assert named(found, "CronJob", "migrate")["spec"]["suspend"] is True
    nightly = named(found, "CronJob", "nightly")["spec"]
    assert (nightly["schedule"], nightly["timeZone"]) == ("0 3 * * *", "Etc/UTC")
    assert nightly["concurrencyPolicy"] == "Forbid"
    assert nightly["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 3600
    assert "suspend" not in nightly


def test_a_volume_is_mounted_where_it_is_wanted() -> None:
    found = objects(service(BOOKINGS), "production")
    mounts = {each["mountPath"] for each in container(found, "Deployment", "web")["volumeMounts"]}
    assert mounts == {"/tmp", "/data/uploads"}
    assert len(container(found, "Deployment", "worker")["volumeMounts"]) == 1
    podman = for_podman(service(BOOKINGS), "lab", IMAGE, "web", PodmanHost("10.0.0.1"), {})
    paths = [each["hostPath"]["path"] for each in next(pods(podman))["volumes"] if "hostPath" in each]
    assert paths == ["/srv/minipc/volumes/bookings/uploads"]


def test_several_replicas_are_not_disrupted_together() -> None:
    two = service(BOOKINGS, processes={"web": {"port": 8000, "replicas": 2}})
    found = objects(two, "production")
    assert named(found, "PodDisruptionBudget", "web")["spec"]["minAvailable"] == 1
    assert not [each for each in objects(service(BOOKINGS), "lab") if each["kind"] == "PodDisruptionBudget"]


def test_a_process_with_a_database_file_never_runs_twice() -> None:
    files = {"state": {"mount": "/state", "size_gb": 1, "data_class": "must recover", "sqlite": ["*.db"]}}
    found = objects(service(BOOKINGS, volumes=files), "lab")
    assert named(found, "Deployment", "web")["spec"]["strategy"] == {"type": "Recreate"}


def test_under_podman_ports_are_on_loopback_and_the_secret_belongs_to_the_pod() -> None:
    data = {"DATABASE_URL": "postgresql://…", "STRIPE_KEY": "sk", "OTHER_URL": "o", "worker.DATABASE_URL": "w"}
    found = for_podman(service(BOOKINGS), "lab", IMAGE, "web", PodmanHost("10.0.0.1", 9400), data)
    own = named(found, "Secret", "minipc-bookings-web")
    assert sorted(own["data"]) == ["DATABASE_URL", "OTHER_URL", "STRIPE_KEY"], "only what the process uses"
    ports = container(found, "Pod", "minipc-bookings-web")["ports"]
    assert {each["hostPort"] for each in ports} == {30081, 9400}
    assert {each["hostIP"] for each in ports} == {"127.0.0.1"}
    env = {each["name"]: each for each in container(found, "Pod", "minipc-bookings-web")["env"]}
    assert env["RELEASE"] == {"name": "RELEASE", "value": "bookings@v2"}
    assert env["LITERAL"]["value"] == "$(HOME) and {braces}"
    assert env["STRIPE_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "minipc-bookings-web"
