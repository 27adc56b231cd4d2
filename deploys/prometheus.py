"""Prometheus and its exporters: what is measured, kept, and turned into alerts. On loopback only.

pyinfra inventory/production.py deploys/prometheus.py
"""

from pyinfra.api import deploy

from minipc.checks.components import values as settings_by_name
from minipc.deploying import belongs_here, cluster_agents, config, secrets
from minipc.operations import Directory, File, SecretFile, install, place, unit, units
from minipc.operations.monitoring import registered
from minipc.ports import MONITORING

ETC = "/etc/prometheus/minipc"
SYSTEMD = "/etc/systemd/system"
EXPORTERS = ["node", "blackbox", "postgres", "redis"]


@deploy("prometheus")
def prometheus() -> None:
    settings = config()
    passwords = secrets({"postgres": "postgres.password.monitoring", "redis": "redis.password.monitoring"})
    own = {"ports": MONITORING, "listen": "127.0.0.1", "etc": ETC, "agents": cluster_agents()}
    values = settings_by_name(settings) | own

    # install
    packages = [f"prometheus-{exporter}-exporter" for exporter in EXPORTERS]
    install(name="install packages", packages=["prometheus", "promtool", *packages])

    # configure
    files = place(
        name="configure what is measured",
        component="prometheus",
        entries=[
            Directory(ETC),
            Directory(f"{ETC}/scrape.d"),
            Directory(f"{ETC}/rules.d"),
            *registered(ETC, values, settings.prometheus.pace, settings.alertmanager.runbook_url),
            File("prometheus.yml.j2", f"{ETC}/prometheus.yml", check="promtool check config --syntax-only {path}"),
        ],
        values=values,
    )
    slice_ = place(
        name="configure the memory of the set",
        component="prometheus",
        entries=[File("minipc-monitoring.slice.j2", f"{SYSTEMD}/minipc-monitoring.slice")],
        values=values,
    )
    server = place(
        name="configure the server's unit",
        component="prometheus",
        entries=[File("prometheus.conf.j2", f"{SYSTEMD}/prometheus.service.d/minipc.conf")],
        values=values,
    )
    exporters = place(
        name="configure the exporters",
        component="prometheus",
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            File(
                "blackbox.yml.j2",
                f"{ETC}/blackbox.yml",
                check="prometheus-blackbox-exporter --config.check --config.file={path}",
            ),
            SecretFile("postgres-exporter.env.j2", f"{ETC}/postgres-exporter.env"),
            SecretFile("redis-exporter.env.j2", f"{ETC}/redis-exporter.env"),
            *(
                File(f"{name}-exporter.conf.j2", f"{SYSTEMD}/prometheus-{name}-exporter.service.d/minipc.conf")
                for name in EXPORTERS
            ),
        ],
        values=values | {"passwords": passwords},
    )

    # activate
    running = [f"prometheus-{exporter}-exporter.service" for exporter in EXPORTERS]
    units(name="activate the exporters", units=running, restart_on=[slice_, exporters])
    unit(name="activate", unit="prometheus.service", restart_on=[slice_, server], reload_on=[files])


if belongs_here("prometheus"):
    prometheus()
