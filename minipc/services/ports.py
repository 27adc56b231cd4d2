"""Which port of the machine a part of a service has, where the service file does not say it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from minipc.config import Settings
from minipc.config.service import Service
from minipc.core.ports import MONITORING, OPERATOR_INGRESS

FIRST_METRICS_PORT = 9400


def metrics_port(services: Sequence[Service], name: str, process: str) -> int:
    """Return the port on 127.0.0.1 where a process publishes its metrics under podman.

    Args:
        services: all declared services.
        name: of the service.
        process: of the process, which has metrics.

    Returns:
        The port of the ingress if the process publishes its metrics on the port that the ingress uses; else a number
        from FIRST_METRICS_PORT on, by the position among all processes with metrics, sorted by service and process.
    """
    service = next(each for each in services if each.name == name)
    if service.ingress and service.front and service.front[0] == process and not _has_own_port(service, process):
        return service.ingress.node_port
    own = sorted(
        (each.name, part) for each in services for part, settings in each.processes.items() if settings.metrics
    )
    return FIRST_METRICS_PORT + own.index((name, process))


def network_interface(name: str) -> str:
    """Return the interface of a service's network under podman; the kernel allows 15 characters."""
    return f"svc-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def redis_port(settings: Settings, service: Service) -> int:
    """Return the port of the Redis instance that a service uses: the shared cache, or the service's own queue.

    Queues have the ports after the cache's, by the position among the services with a queue, sorted by name.
    """
    if service.redis is None or service.redis.kind == "cache":
        return settings.redis.port
    queues = sorted(each.name for each in settings.services.declared if each.redis and each.redis.kind == "queue")
    return settings.redis.port + 1 + queues.index(service.name)


def data_ports(settings: Settings) -> list[int]:
    """Return the ports of the service address that pods may reach. The last is the drill's scratch server."""
    redis = {redis_port(settings, each) for each in settings.services.declared if each.redis}
    return [settings.postgres.port, *sorted(redis | {settings.redis.port}), settings.backups.drill_port]


def loopback_ports(settings: Settings) -> list[tuple[str, int]]:
    """Return which account may connect to which port of the machine that asks for no login, sorted."""
    services, loki = settings.services, settings.loki.port
    node_ports = [each.ingress.node_port for each in services.declared if each.ingress]
    metrics = [
        metrics_port(services.declared, service.name, name)
        for service in (services.declared if services.runtime == "podman" else ())
        for name, process in service.processes.items()
        if process.metrics
    ]
    allowed = {
        "caddy": node_ports,
        "grafana": [MONITORING["prometheus"], loki],
        "loki": [loki, settings.loki.grpc_port],
        "prometheus": [*MONITORING.values(), loki, *node_ports, *metrics, OPERATOR_INGRESS],
        "syslog-ng": [loki],
    }
    return sorted({(account, port) for account, ports in allowed.items() for port in ports})


def _has_own_port(service: Service, process: str) -> bool:
    """Return whether the metrics are on another port than the one that users reach."""
    settings = service.processes[process]
    return settings.metrics is not None and settings.metrics.port != settings.port
