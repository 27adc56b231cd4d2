"""Make the Kubernetes objects of a service: what ArgoCD applies in K3s, and what podman runs where there is no K3s.

All containers come from one hardened pod template. It satisfies the Pod Security level "restricted"
(https://kubernetes.io/docs/concepts/security/pod-security-standards/).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minipc.config.service import CronJob, Health, Process, Program, Service, Volume
from minipc.services.environment import (
    MIGRATE,
    SECRETS_FOLDER,
    VERSION,
    Purpose,
    programs,
    secret_name,
    uses_password_files,
    variables,
)
from minipc_machine.volume_files import VOLUMES

Object = dict[str, Any]
COMPONENT, PART_OF = "app.kubernetes.io/component", "app.kubernetes.io/part-of"
REVISION = "org.opencontainers.image.revision"
"""Annotation of each pod: the version that it runs."""
DIGEST = "minipc.local/image-digest"
"""Annotation of each pod: the digest of its image."""
DRILL = "drill"
"""Component of the pod that migrates the drill's scratch server; it reaches nothing else."""
VERSION_VARIABLE = "MINIPC_VERSION"
NEVER = "0 0 1 1 *"
"""Schedule of a suspended CronJob; any valid one will do."""
# A pod that is ending still gets requests for some seconds, until every proxy knows (kube-proxy, the ingress).
DRAIN_S = 10
STOP_S = 20
WRITABLE_LIMIT = "2Gi"


@dataclass(frozen=True)
class Image:
    """The image of a release.

    Attributes:
        reference: repository with tag or digest, as a container runtime understands it.
        version: what `{service.version}` stands for.
        digest: of the image, such as "sha256:…"; empty if it is not known.
    """

    reference: str
    version: str
    digest: str = ""

    @property
    def annotations(self) -> dict[str, str]:
        """Return the annotations of its pods."""
        return {REVISION: self.version, **({DIGEST: self.digest} if self.digest else {})}


def objects(service: Service, environment: str, image: Image | None = None) -> list[Object]:
    """Return the objects that belong into the deploy repository, in the order in which they are applied.

    Args:
        environment: name of the environment, "production" or "lab".
        image: of the release; None: the repository without a tag, which kustomize replaces.
    """
    found: list[Object] = []
    if service.migrate:
        found.append(_migration(service, environment, image, service.migrate))
    for name, process in sorted(service.processes.items(), key=lambda each: (not _is_front(service, each[0]), each[0])):
        found.append(_deployment(service, environment, image, name, process))
        if process.port:
            found.append(_service(service, name, process.port))
        if process.replicas > 1:
            found.append(_disruption_budget(service, name))
    found += [_cron_job(service, environment, image, name, cron) for name, cron in sorted(service.cron.items())]
    return found


@dataclass(frozen=True)
class PodmanHost:
    """What a pod under podman must know about the machine.

    Attributes:
        service_address: address of PostgreSQL and Redis.
        metrics_port: port on 127.0.0.1 for the metrics of the part; None: none.
    """

    service_address: str
    metrics_port: int | None = None


def for_podman(
    service: Service, environment: str, image: Image, part: str, host: PodmanHost, data: Mapping[str, str]
) -> list[Object]:
    """Return a Secret and the pod of one part, as `podman kube play` runs them: one replica, ports on loopback.

    Probes are left out: podman would run curl in the container, which few images have. systemd starts a process that
    has ended again; one that hangs is not noticed.

    Args:
        part: name of a process or cron job, or "migrate".
        data: content of the Secret, from `secret_data`. Each pod has a separate Secret, which is removed with it.
    """
    program = programs(service)[part]
    found = _pod(service, environment, image, part, program, "migrate" if part == MIGRATE else "run")
    name = podman_name(service, part)
    spec, container = found["spec"], found["spec"]["containers"][0]
    needed = {each.key for each in variables(service, environment, part) if each.key} | {
        *uses_password_files(service, part)
    }
    spec |= {
        "restartPolicy": "Never",
        "hostAliases": [{"ip": host.service_address, "hostnames": ["postgres", "redis"]}],
    }
    container["imagePullPolicy"] = "Never"
    container["ports"] = _host_ports(service, part, program, host)
    for variable in container["env"]:
        variable |= _for_podman(variable, name, image)
    # podman knows volumes by name, on the whole machine.
    for mount in container["volumeMounts"]:
        mount["name"] = f"{name}-{mount['name']}"
    for volume in spec["volumes"]:
        volume["name"] = f"{name}-{volume['name']}"
        if "persistentVolumeClaim" in volume:
            claim = volume.pop("persistentVolumeClaim")["claimName"]
            volume["hostPath"] = {"path": f"{VOLUMES}/{service.name}/{claim}", "type": "Directory"}
        elif "secret" in volume:
            volume["secret"]["secretName"] = name
        else:
            volume["emptyDir"] = {}
    metadata = {"name": name, **found["metadata"]}
    own = secret(service, {key: value for key, value in data.items() if key in needed}, name)
    del own["metadata"]["namespace"]
    return [*([own] if needed else []), {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]


def podman_name(service: Service, part: str) -> str:
    """Return the name of a part's pod and unit under podman."""
    return f"minipc-{service.name}-{part}"


def _for_podman(variable: Object, name: str, image: Image) -> Object:
    """Return what changes in a variable: the version is known, and podman replaces $(NAME) in arguments only."""
    reference = variable.get("valueFrom", {})
    if "secretKeyRef" in reference:
        return {"valueFrom": {"secretKeyRef": reference["secretKeyRef"] | {"name": name}}}
    if "fieldRef" in reference:
        variable.pop("valueFrom")
        return {"value": image.version}
    text = variable["value"].replace("$$(", "\0(").replace(f"$({VERSION_VARIABLE})", image.version)
    return {"value": text.replace("\0(", "$(")}


def _host_ports(service: Service, part: str, program: Program, host: PodmanHost) -> list[Object]:
    """Return the ports of a part on 127.0.0.1."""
    if not isinstance(program, Process):
        return []
    wanted: dict[int, int] = {}
    if service.ingress and program.port and _is_front(service, part):
        wanted[service.ingress.node_port] = program.port
    if program.metrics and host.metrics_port:
        wanted[host.metrics_port] = program.metrics.port
    return [{"containerPort": inside, "hostPort": port, "hostIP": "127.0.0.1"} for port, inside in wanted.items()]


def volumes_of(service: Service, part: str) -> dict[str, Volume]:
    """Return the volumes that a part has, by name. The migration has all that are for all parts."""
    return {name: each for name, each in service.volumes.items() if each.processes is None or part in each.processes}


def secret(service: Service, data: Mapping[str, str], name: str) -> Object:
    """Return a Secret with these values."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(service, name),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def _deployment(service: Service, environment: str, image: Image | None, name: str, process: Process) -> Object:
    template = _pod(service, environment, image, name, process)
    container = template["spec"]["containers"][0]
    front = _is_front(service, name)
    container["ports"] = _ports(process)
    probes = _front_probes(service, service.health) if front and service.health else _worker_probes(process)
    container |= probes
    template["spec"]["terminationGracePeriodSeconds"] = DRAIN_S + STOP_S if process.port else STOP_S
    if process.port:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": DRAIN_S}}}
    if process.metrics:
        template["metadata"]["annotations"] |= {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(process.metrics.port),
            "prometheus.io/path": process.metrics.path,
        }
    limit_s = service.health.start_limit_s if service.health else 60
    metadata = _metadata(service, name)
    metadata["annotations"] = {"argocd.argoproj.io/sync-wave": "1" if front else "2"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": process.replicas,
            "revisionHistoryLimit": 5,
            "progressDeadlineSeconds": limit_s + 30,
            # A process that nothing asks is healthy if it still runs after this time.
            "minReadySeconds": 2 if probes else 5,
            "strategy": _strategy(service, name, process),
            "selector": {"matchLabels": _labels(service, name)},
            "template": template,
        },
    }


def _strategy(service: Service, name: str, process: Process) -> Object:
    """Return how pods are replaced: without a gap, or one after the other where two at once would be wrong."""
    sqlite = any(each.sqlite for each in volumes_of(service, name).values())
    if sqlite or (process.port is None and process.replicas == 1):
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def _service(service: Service, name: str, port: int) -> Object:
    """Return the Service of a process. Its port is the process's own, so that http://NAME:PORT is the same anywhere."""
    entry: Object = {"name": "http", "port": port, "targetPort": "http"}
    spec: Object = {"type": "ClusterIP", "selector": _labels(service, name), "ports": [entry]}
    if service.ingress and _is_front(service, name):
        spec["type"] = "NodePort"
        # Open on loopback only, where the ingress is.
        entry["nodePort"] = service.ingress.node_port
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(service, name), "spec": spec}


def _disruption_budget(service: Service, name: str) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(service, name),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": _labels(service, name)}},
    }


def _cron_job(service: Service, environment: str, image: Image | None, name: str, cron: CronJob) -> Object:
    template = _pod(service, environment, image, name, cron)
    return _scheduled(service, name, cron.schedule, _job_spec(template, cron.time_limit_s))


def _migration(service: Service, environment: str, image: Image | None, program: Program) -> Object:
    """Return the suspended CronJob from which each release makes the Job that migrates the database."""
    template = _pod(service, environment, image, MIGRATE, program, "migrate")
    time_limit_s = service.migrate.time_limit_s if service.migrate else 0
    found = _scheduled(service, MIGRATE, NEVER, _job_spec(template, time_limit_s))
    found["spec"]["suspend"] = True
    return found


def _scheduled(service: Service, name: str, schedule: str, job_spec: Object) -> Object:
    labels = {"labels": _labels(service, name), "annotations": dict(job_spec["template"]["metadata"]["annotations"])}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(service, name),
        "spec": {
            "schedule": schedule,
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            # After the machine was off: at most this late, else the next time.
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": labels, "spec": job_spec},
        },
    }


def _job_spec(template: Object, time_limit_s: int) -> Object:
    template["spec"]["restartPolicy"] = "Never"
    return {"backoffLimit": 0, "activeDeadlineSeconds": time_limit_s, "template": template}


def _pod(
    service: Service,
    environment: str,
    image: Image | None,
    part: str,
    program: Program,
    purpose: Purpose = "run",
) -> Object:
    """Return the pod template that all containers of a service come from."""
    mounts, volumes = _volumes(service, part, purpose)
    container: Object = {
        "name": part,
        "image": image.reference if image else service.image,
        "imagePullPolicy": "IfNotPresent",
        **({"command": [*map(_verbatim, program.entrypoint)]} if program.entrypoint else {}),
        **({"args": [*map(_verbatim, program.command)]} if program.command else {}),
        "env": _env(service, environment, part, purpose),
        "resources": {
            "requests": {"cpu": "50m", "memory": f"{max(16, program.memory_mb // 3)}Mi"},
            "limits": {"memory": f"{program.memory_mb}Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    return {
        "metadata": {"labels": _labels(service, part), "annotations": image.annotations if image else {}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": service.user,
                "runAsGroup": service.user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": STOP_S,
            "containers": [container],
            "volumes": volumes,
        },
    }


def _env(service: Service, environment: str, part: str, purpose: Purpose) -> list[Object]:
    """Return the variables. The version comes from the pod's annotation, which the release sets."""
    version: Object = {"valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{REVISION}']"}}}
    wanted = variables(service, environment, part)
    composed = any(VERSION in each.text and each.text != VERSION for each in wanted)
    # A variable can only refer to one before it.
    found: list[Object] = [{"name": VERSION_VARIABLE, **version}] if composed else []
    for each in wanted:
        if each.key:
            reference = {"name": secret_name(service, purpose), "key": each.key}
            found.append({"name": each.name, "valueFrom": {"secretKeyRef": reference}})
        elif each.text == VERSION:
            found.append({"name": each.name, **version})
        else:
            text = _verbatim(each.text).replace(VERSION, f"$({VERSION_VARIABLE})")
            found.append({"name": each.name, "value": text})
    return found


def _verbatim(text: str) -> str:
    """Return the text so that Kubernetes, which replaces $(NAME), keeps it as it is."""
    return text.replace("$(", "$$(")


def _volumes(service: Service, part: str, purpose: Purpose) -> tuple[list[Object], list[Object]]:
    """Return what is mounted in the container, and the volumes of the pod."""
    mounts: list[Object] = []
    volumes: list[Object] = []
    for number, path in enumerate(service.writable):
        mounts.append({"name": f"writable-{number}", "mountPath": path})
        volumes.append({"name": f"writable-{number}", "emptyDir": {"sizeLimit": WRITABLE_LIMIT}})
    for name, volume in sorted(volumes_of(service, part).items()):
        mounts.append({"name": f"data-{name}", "mountPath": volume.mount})
        volumes.append({"name": f"data-{name}", "persistentVolumeClaim": {"claimName": name}})
    keys = uses_password_files(service, part)
    if keys:
        mounts.append({"name": "secrets", "mountPath": SECRETS_FOLDER, "readOnly": True})
        items = [{"key": key, "path": key} for key in keys]
        # Readable by the container's user, which is not root; nothing else runs in the pod.
        content = {"secretName": secret_name(service, purpose), "defaultMode": 0o444, "items": items}
        volumes.append({"name": "secrets", "secret": content})
    return mounts, volumes


def _ports(process: Process) -> list[Object]:
    found: list[Object] = []
    if process.port:
        found.append({"name": "http", "containerPort": process.port})
    if process.metrics and process.metrics.port != process.port:
        found.append({"name": "metrics", "containerPort": process.metrics.port})
    return found


def _front_probes(service: Service, health: Health) -> Object:
    """Return the probes of the process behind the ingress.

    No traffic before it is ready for the first time. After that only the live path counts: a database that goes away
    must not take away pages that do not need it.
    """
    return {
        "startupProbe": _http(service, health.ready, 1, 2, health.start_limit_s),
        "readinessProbe": _http(service, health.live, 2, 2, 3),
        "livenessProbe": _http(service, health.live, 10, 5, 6),
    }


def _worker_probes(process: Process) -> Object:
    """Return the probe of any other process: its metrics answer, or its port is open. Empty if it has neither."""
    if process.metrics:
        port = "http" if process.metrics.port == process.port else "metrics"
        asked: Object = {"httpGet": {"path": process.metrics.path, "port": port}}
    elif process.port:
        asked = {"tcpSocket": {"port": "http"}}
    else:
        return {}
    return {"readinessProbe": asked | {"periodSeconds": 2, "timeoutSeconds": 2}}


def _http(service: Service, path: str, period_s: int, timeout_s: int, failures: int) -> Object:
    """Return a request as the ingress sends it: many services answer only to their own name, and only to HTTPS."""
    headers = [{"name": "Host", "value": service.domain}, {"name": "X-Forwarded-Proto", "value": "https"}]
    return {
        "httpGet": {"path": path, "port": "http", "httpHeaders": headers},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _is_front(service: Service, name: str) -> bool:
    return service.front is not None and service.front[0] == name


def _metadata(service: Service, name: str) -> Object:
    return {"name": name, "namespace": service.name, "labels": _labels(service, name)}


def _labels(service: Service, part: str) -> dict[str, str]:
    return {PART_OF: service.name, COMPONENT: part}
