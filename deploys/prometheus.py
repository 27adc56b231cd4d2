"""Prometheus and its exporters: metrics and alert rules. They listen on loopback only.

pyinfra inventory/production.py deploys/prometheus.py
"""

import json
from dataclasses import dataclass

from pyinfra.api import deploy

from minipc.checks.probes import values as values_of_services
from minipc.checks.rule_files import values as settings_by_name
from minipc.checks.schema import seconds
from minipc.config import Settings
from minipc.config.services import MONITORING as USER
from minipc.core.addresses import bracketed
from minipc.core.ports import MONITORING
from minipc.pyinfra_ext.deploying import belongs_here, cluster_agents, config, offsite_address, secrets
from minipc.pyinfra_ext.operations import (
    Absent,
    Content,
    Directory,
    File,
    SecretFile,
    install,
    place,
    programs,
    unit,
    units,
)
from minipc.pyinfra_ext.operations.files import Entry
from minipc.pyinfra_ext.operations.monitoring import registered
from minipc.secrets import ed25519
from minipc.secrets.catalogue import TLS_KEY, WATCHER_CLIENT_KEY, WATCHER_PASSWORD
from minipc.services.queues import queues
from minipc_machine import measure_services as program
from minipc_machine import schema

ETC = "/etc/prometheus/minipc"
SYSTEMD = "/etc/systemd/system"
SENDING = ("watcher.crt", "watcher-client.crt", "watcher-client.key", "watcher.password")
EXPORTERS = ["node", "blackbox", "postgres", "redis"]


@deploy("prometheus")
def prometheus() -> None:
    settings = config()
    passwords = secrets({"postgres": "postgres.password.monitoring", "redis": "redis.password.monitoring"})
    redis_ports = [settings.redis.port, *(queue.port for queue in queues(settings))]
    sending = _sending(settings)
    own = {
        "offsite_url": sending.url if sending else None,
        "ports": MONITORING,
        "listen": "127.0.0.1",
        "etc": ETC,
        "agents": cluster_agents(),
    }
    limits = {"set_memory_max_mb": settings.prometheus.set_memory_mb * 3 // 2}
    values = settings_by_name(settings) | values_of_services(settings) | own | limits

    # install
    packages = [f"prometheus-{exporter}-exporter" for exporter in EXPORTERS]
    install(name="Install Prometheus and exporters", packages=["prometheus", "promtool", *packages])

    # configure
    files = place(
        name="Configure Prometheus scrapes and rules",
        component="prometheus",
        entries=[
            Directory(ETC),
            Directory(f"{ETC}/scrape.d"),
            Directory(f"{ETC}/rules.d"),
            *registered(
                ETC, values, settings.services.declared, settings.prometheus.pace, settings.alertmanager.runbook_url
            ),
            *(sending.files if sending else [Absent(f"{ETC}/{name}") for name in SENDING]),
            File("prometheus.yml.j2", f"{ETC}/prometheus.yml", check="promtool check config --syntax-only {path}"),
        ],
        values=values,
    )
    slice_ = place(
        name="Set memory limits for monitoring.slice",
        component="prometheus",
        entries=[File("minipc-monitoring.slice.j2", f"{SYSTEMD}/minipc-monitoring.slice")],
        values=values,
    )
    server = place(
        name="Configure the Prometheus unit",
        component="prometheus",
        entries=[File("prometheus.conf.j2", f"{SYSTEMD}/prometheus.service.d/minipc.conf")],
        values=values,
    )
    exporters = place(
        name="Configure the exporters",
        component="prometheus",
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            File(
                "blackbox.yml.j2",
                f"{ETC}/blackbox.yml",
                check="prometheus-blackbox-exporter --config.check --config.file={path}",
            ),
            SecretFile("postgres-exporter.env.j2", f"{ETC}/postgres-exporter.env"),
            # For these instances only: the exporter connects to whatever it is asked for, and would log in there.
            SecretFile(
                "",
                f"{ETC}/redis-exporter.json",
                owner="prometheus",
                content=json.dumps({_redis_url(port): passwords["redis"].reveal() for port in redis_ports}).encode(),
            ),
            Absent(f"{ETC}/redis-exporter.env"),
            *(
                File(f"{name}-exporter.conf.j2", f"{SYSTEMD}/prometheus-{name}-exporter.service.d/minipc.conf")
                for name in EXPORTERS
            ),
        ],
        values=values | {"passwords": passwords},
    )

    measuring = programs(
        name="Install the program that measures the services",
        component="prometheus",
        programs=["measure-services"],
        entries=[
            Directory("/etc/minipc"),
            Content(schema.dump(_measured(settings)).encode(), "/etc/minipc/measure-services.json"),
            File("minipc-measure-services.service.j2", f"{SYSTEMD}/minipc-measure-services.service"),
            File("minipc-measure-services.timer", f"{SYSTEMD}/minipc-measure-services.timer"),
        ],
        values=values,
    )

    # activate
    running = [f"prometheus-{exporter}-exporter.service" for exporter in EXPORTERS]
    units(name="Start the exporters", units=running, restart_on=[slice_, exporters])
    unit(name="Start Prometheus", unit="prometheus.service", restart_on=[slice_, server], reload_on=[files])
    unit(name="Enable the timer of measurements", unit="minipc-measure-services.timer", restart_on=[measuring])


@dataclass(frozen=True)
class Sending:
    """Where metrics are sent to, and the files with certificate, key and password."""

    url: str
    files: list[Entry]


def _sending(settings: Settings) -> Sending | None:
    """Return how the off-site host gets metrics; None if there is none."""
    address = offsite_address()
    if address is None:
        return None
    found = secrets({"tls": TLS_KEY, "client": WATCHER_CLIENT_KEY, "password": WATCHER_PASSWORD})
    certificate, client, key, password = (f"{ETC}/{name}" for name in SENDING)
    return Sending(
        f"https://{bracketed(address)}:{settings.watcher.port}/api/v1/write",
        [
            Content(ed25519.certificate(found["tls"], address).encode(), certificate),
            Content(ed25519.certificate(found["client"], "minipc", client=True).encode(), client),
            SecretFile("", key, owner="prometheus", content=ed25519.pem(found["client"]).encode()),
            SecretFile("", password, owner="prometheus", content=found["password"].reveal().encode()),
        ],
    )


def _redis_url(port: int) -> str:
    """Return the address of an instance as the exporter looks up its password: with the user."""
    return f"redis://{USER}@127.0.0.1:{port}"


def _measured(settings: Settings) -> program.MeasureSettings:
    """Return what is measured of the services, from their files."""
    declared = settings.services.declared
    in_k3s = settings.services.runtime == "k3s"
    return program.MeasureSettings(
        runtime="k3s" if in_k3s else "podman",
        processes=[
            # Podman runs one of each.
            program.Wanted(service.name, name, process.replicas if in_k3s else 1)
            for service in declared
            for name, process in service.processes.items()
        ],
        cron=[
            program.CronJob(service.name, name, seconds(job.alert_after))
            for service in declared
            for name, job in service.cron.items()
        ],
        answer_within_s={each.name: each.alerts.answer_within_ms / 1000 for each in declared if each.ingress},
        state="/var/lib/minipc/measure-services/state.json",
    )


if belongs_here("prometheus"):
    prometheus()
