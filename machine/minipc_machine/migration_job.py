"""Run the migrations of a service once more, with the scratch server of a drill as their database.

The pod is the release's, with one change: what comes from the Secret NAME-migrate there comes from NAME-drill, whose
values lead to the scratch server. Nothing else in it may name a database, its volumes are empty, and it has the labels
of a drill: in K3s, a NetworkPolicy lets such a pod reach the scratch server only.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipc_machine.processes import CommandError, run
from minipc_machine.program import EXIT_COULD_NOT_VERIFY, FailedError

MIGRATE = "migrate"
"""Name of the suspended CronJob from which a release makes its job."""
JOB = "drill-migrate"
COMPONENT, PART_OF = "app.kubernetes.io/component", "app.kubernetes.io/part-of"
DRILL = "drill"
SERVER = {"node-role.kubernetes.io/control-plane": "true"}
GRACE_S = 60
# Exit code of podman itself.
NOT_STARTED = 125
# The database has the name `postgres` in the namespace of the service.
_HOST = re.compile(r"^postgres(\.[\w.-]+)?(:\d+)?$|@postgres\b|postgres(ql)?(\+\w+)?://|\bhost(addr)?=")
_VARIABLE = re.compile(
    r"^PG(SERVICE|SERVICEFILE)$"
    r"|(^|_)(DATABASE|POSTGRES|POSTGRESQL|PG|DB|SQL)_?(\w*_)?(HOST|HOSTADDR|URL|URI|DSN|ADDR|ADDRESS|SERVER)$",
    re.IGNORECASE,
)


def migrate_in_k3s(service: str, address: str, time_limit_s: int) -> bool:
    """Run the migration of a service in K3s to its end; return False if no release has left one.

    Args:
        address: of the live database, which nothing in the pod may contain.

    Raises:
        FailedError: the migration failed, it names a database itself, or the cluster does not answer.
    """
    found = kubectl(service, "get", "cronjob", MIGRATE, "--output=json", "--ignore-not-found")
    if not found:
        return False
    manifest = job(service, json.loads(found), address, time_limit_s)
    remove(service)
    try:
        kubectl(service, "create", "--filename=-", stdin=json.dumps(manifest))
        _wait(service, time_limit_s)
    finally:
        remove(service)
    return True


def job(service: str, cron_job: Mapping[str, Any], address: str, time_limit_s: int) -> dict[str, Any]:
    """Return the drill's job, made from a CronJob; it has none of its labels. Raises FailedError as `for_scratch`."""
    template = cron_job["spec"]["jobTemplate"]["spec"]["template"]
    metadata = {
        "labels": {COMPONENT: DRILL, PART_OF: service},
        "annotations": template.get("metadata", {}).get("annotations", {}),
    }
    # On the server: an agent may disappear at any time, and its pods would never end.
    pod = for_scratch(Secrets(f"{service}-migrate", f"{service}-drill"), template["spec"], address)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": JOB},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": time_limit_s,
            "template": {"metadata": metadata, "spec": pod | {"nodeSelector": SERVER}},
        },
    }


@dataclass(frozen=True)
class Secrets:
    """Names of two Secrets: the one that a release's migration uses, and the one that takes its place."""

    released: str
    drill: str


def for_scratch(secrets: Secrets, pod: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Return a pod that has the drill's Secret in the place of the release's, and empty volumes.

    Raises:
        FailedError: the pod takes something from elsewhere, or names a database. Then it could change the live one.
    """
    changed: dict[str, Any] = json.loads(json.dumps(pod))
    for volume in changed.get("volumes") or []:
        _change_volume(secrets, volume)
    for container in _containers(changed):
        for source in container.get("envFrom") or []:
            _change_reference(secrets, source.get("secretRef"), f"envFrom of {container['name']}", "name")
        for variable in container.get("env") or []:
            _change_variable(secrets, variable)
        _refuse_databases(container, address)
    return changed


def _containers(pod: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod.get("initContainers") or []
    yield from pod["containers"]


def _change_volume(secrets: Secrets, volume: dict[str, Any]) -> None:
    where = f"the volume {volume['name']}"
    if "secret" in volume:
        _change_reference(secrets, volume["secret"], where, "secretName")
    elif "projected" in volume:
        for source in volume["projected"].get("sources") or []:
            if "downwardAPI" not in source:
                _change_reference(secrets, source.get("secret"), where, "name")
    elif {"persistentVolumeClaim", "hostPath"} & set(volume):
        # The files of the service are live.
        name = volume["name"]
        volume.clear()
        volume |= {"name": name, "emptyDir": {}}
    elif not {"emptyDir", "downwardAPI"} & set(volume):
        kinds = ", ".join(each for each in volume if each != "name")
        raise _refused(f"{where} is a {kinds}, and its content is not known")


def _change_variable(secrets: Secrets, variable: dict[str, Any]) -> None:
    source = variable.get("valueFrom")
    if source and "fieldRef" not in source and "resourceFieldRef" not in source:
        _change_reference(secrets, source.get("secretKeyRef"), f"the variable {variable['name']}", "name")


def _change_reference(secrets: Secrets, reference: dict[str, Any] | None, where: str, key: str) -> None:
    if reference is None or reference.get(key) not in (secrets.released, secrets.drill):
        source = reference.get(key) if reference else "something that is not a Secret"
        raise _refused(f"{where} comes from {source}; allowed: the Secret {secrets.released}")
    reference[key] = secrets.drill


def _refuse_databases(container: Mapping[str, Any], address: str) -> None:
    """Raise FailedError if a container names a database in its variables or its command."""
    texts = {f"the variable {each['name']}": each["value"] for each in container.get("env") or [] if each.get("value")}
    for where in texts:
        if _VARIABLE.search(where.removeprefix("the variable ")):
            raise _refused(f"{where} of {container['name']} is not from the Secret: write it with {{postgres.host}}")
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    for where, text in [*texts.items(), *(("the command", word) for word in words)]:
        if address in text or _HOST.search(text):
            raise _refused(f"{where} of {container['name']} names a database: write it with {{postgres.host}}")


def _refused(what: str) -> FailedError:
    return FailedError(
        f"the migration was not run, because it could change the live database: {what}", EXIT_COULD_NOT_VERIFY
    )


# --- podman ---------------------------------------------------------------------------------------------------------


def migrate_with_podman(service: str, manifest: Path, address: str, time_limit_s: int) -> bool:
    """Run the migration of a service with podman to its end; return False if the machine has none.

    Args:
        manifest: JSON documents with the drill's Secret and the pod, separated by lines `---`.

    Raises:
        FailedError: as for `migrate_in_k3s`.
    """
    if not manifest.exists():
        return False
    objects = [json.loads(text) for text in manifest.read_text().split("\n---\n")]
    pod = next(each for each in objects if each["kind"] == "Pod")
    secret = f"minipc-{service}-{DRILL}"
    pod["spec"] = for_scratch(Secrets(secret, secret), pod["spec"], address)
    # There the name of the live database leads nowhere.
    pod["spec"].pop("hostAliases", None)
    container = f"{pod['metadata']['name']}-{pod['spec']['containers'][0]['name']}"
    text = "\n---\n".join(json.dumps(each) for each in objects)
    # In a separate unit: what confines the drill would confine podman, too.
    unit = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit=minipc-{JOB}-{service}"]
    unit += [f"--property=RuntimeMaxSec={time_limit_s}", f"--setenv=CONTAINER={container}"]
    unit += [f"--setenv=NETWORK=minipc-{service}"]
    try:
        run([*unit, "sh", "-c", _PODMAN], time_limit_s + GRACE_S, text)
    except CommandError as error:
        if error.returncode == NOT_STARTED:
            raise FailedError(f"podman could not start the migration: {error}", EXIT_COULD_NOT_VERIFY) from None
        raise FailedError(f"the migrations failed: {error}") from None
    return True


# The manifest contains passwords: it is only in a pipe and in a private folder.
_PODMAN = """
set -eu
export PODMAN_IGNORE_CGROUPSV1_WARNING=1
folder=$(mktemp -d)
trap 'podman kube down --force "$folder/pod.yaml" >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
cat > "$folder/pod.yaml"
podman kube play --quiet --replace --start=false --log-driver none --network "$NETWORK" "$folder/pod.yaml" >/dev/null
podman start --attach "$CONTAINER"
"""


# --- K3s ------------------------------------------------------------------------------------------------------------


def remove(service: str) -> None:
    """Remove the job and its pods, also those that a killed drill has left."""
    kubectl(service, "delete", "job", JOB, "--ignore-not-found", "--cascade=foreground", "--timeout=40s")


def kubectl(service: str, *words: str, stdin: str = "") -> str:
    """Run kubectl in the namespace of a service. Raises FailedError, which is no verdict on the backup."""
    argv = ["k3s", "kubectl", f"--namespace={service}", "--request-timeout=20s", *words]
    try:
        # kubectl caches what it knows about the API below its home; /tmp is private to the unit.
        return run(argv, 60, stdin, {"HOME": "/tmp"})  # noqa: S108
    except FailedError as error:
        raise FailedError(f"the cluster could not be queried: {error}", EXIT_COULD_NOT_VERIFY) from None


def _wait(service: str, time_limit_s: int) -> None:
    """Wait until the job has succeeded. Raises FailedError with its last log lines."""
    give_up_at = time.monotonic() + time_limit_s + GRACE_S
    while time.monotonic() < give_up_at:
        status = json.loads(kubectl(service, "get", "job", JOB, "--output=json")).get("status", {})
        if status.get("succeeded"):
            return
        true = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
        if true & {"Failed", "FailureTarget"}:
            raise FailedError(f"the migrations failed: {' | '.join(_last_lines(service))}")
        time.sleep(0.5)
    raise FailedError(f"the job {JOB} did not end within {time_limit_s + GRACE_S} s", EXIT_COULD_NOT_VERIFY)


def _last_lines(service: str) -> list[str]:
    try:
        lines = kubectl(service, "logs", f"job/{JOB}", "--tail=4").splitlines()
    except FailedError as error:
        return [str(error)]
    return ["".join(each if each.isprintable() else "?" for each in line)[:500] for line in lines]
