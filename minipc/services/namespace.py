"""What only the machine may make for a service in K3s: its namespace, limits, data Services and volumes.

The deploy repository may hold none of these (`minipc.gitops.policy`).
"""

from __future__ import annotations

from ipaddress import ip_address

from minipc.config import Settings
from minipc.config.service import Service
from minipc.services import image_policy
from minipc.services.manifests import PART_OF, Object
from minipc.services.network import policies
from minipc.services.ports import redis_port
from minipc_machine.volume_files import VOLUMES

MANAGED = {"app.kubernetes.io/managed-by": "minipc"}


def objects(service: Service, settings: Settings) -> list[Object]:
    """Return the objects of a service that a converge makes, without the Secrets."""
    found = [_namespace(service), _limits(service), _quota(service)]
    if service.postgres:
        found += _data_service(service, settings, "postgres", settings.postgres.port)
    if service.redis:
        found += _data_service(service, settings, "redis", redis_port(settings, service))
    for name, volume in sorted(service.volumes.items()):
        found += _volume(service, settings.host.name, name, volume.size_gb)
    return [*found, *policies(service, settings), *image_policy.objects(service)]


def _namespace(service: Service) -> Object:
    level = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": service.name, "labels": {PART_OF: service.name, **MANAGED, **level}},
    }


def _limits(service: Service) -> Object:
    """Return the memory of a container that says nothing about it."""
    limit = {"type": "Container", "default": {"memory": "256Mi"}, "defaultRequest": {"cpu": "50m", "memory": "64Mi"}}
    return _object(service, "v1", "LimitRange", "limits") | {"spec": {"limits": [limit]}}


def _quota(service: Service) -> Object:
    """Return how many pods the service may have: twice what it needs, and some for jobs."""
    pods = 20 + 2 * sum(each.replicas for each in service.processes.values()) + 2 * len(service.cron)
    return _object(service, "v1", "ResourceQuota", "quota") | {"spec": {"hard": {"pods": str(pods)}}}


def _data_service(service: Service, settings: Settings, name: str, port: int) -> list[Object]:
    """Return a Service that leads to the host. Moving a database elsewhere changes one address here."""
    address = settings.host.service_address
    ports = [{"name": name, "port": port, "protocol": "TCP"}]
    own = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "minipc"}
    slices = _object(service, "discovery.k8s.io/v1", "EndpointSlice", f"{name}-host")
    slices["metadata"]["labels"] |= own
    return [
        _object(service, "v1", "Service", name) | {"spec": {"ports": ports}},
        slices
        | {
            "addressType": f"IPv{ip_address(address).version}",
            "ports": ports,
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    ]


def _volume(service: Service, node: str, name: str, size_gb: int) -> list[Object]:
    """Return a directory of the host as a PersistentVolume, and the service's claim to it."""
    own = f"{service.name}-{name}"
    size = {"storage": f"{size_gb}Gi"}
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    volume: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": own, "labels": {PART_OF: service.name, **MANAGED}},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": service.name, "name": name},
            "local": {"path": f"{VOLUMES}/{service.name}/{name}"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
        },
    }
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": own,
        "resources": {"requests": size},
    }
    return [volume, _object(service, "v1", "PersistentVolumeClaim", name) | {"spec": spec}]


def _object(service: Service, version: str, kind: str, name: str) -> Object:
    metadata = {"name": name, "namespace": service.name, "labels": {PART_OF: service.name, **MANAGED}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}
