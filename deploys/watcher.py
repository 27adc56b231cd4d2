"""Watcher: monitors the services and the mini PC from the off-site host, with Debian's Prometheus and exporters.

Two separate Prometheus servers: one on loopback probes the public addresses and monitors this host; the other receives
the mini PC's metrics through the public port, and alerts when they stop. Neither can change what the other one sees.

pyinfra --limit offsite inventory/production.py deploys/watcher.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import server

from minipc.checks.probes import modules, outside
from minipc.checks.rule_files import values as settings_by_name
from minipc.config import Settings
from minipc.core.ports import MONITORING
from minipc.pyinfra_ext.deploying import belongs_here, config, secrets
from minipc.pyinfra_ext.operations import (
    Absent,
    Content,
    Directory,
    File,
    Placed,
    SecretFile,
    install,
    place,
    unit,
    units,
)
from minipc.pyinfra_ext.operations.monitoring import registered_outside, rules
from minipc.secrets import ed25519
from minipc.secrets.catalogue import TLS_KEY, WATCHER_ALERTMANAGER_PASSWORD, WATCHER_CLIENT_KEY, WATCHER_PASSWORD
from minipc.secrets.hashing import hashed

ETC = "/etc/prometheus/minipc"
RECEIVER = "/etc/minipc/watcher"
USER = "minipc-watcher"
SYSTEMD = "/etc/systemd/system"
EXPORTERS = ["node", "blackbox"]
# Megabytes: of each Prometheus (MemoryHigh), and of all programs together (MemoryHigh, MemoryMax).
MEMORY, SET_MEMORY, SET_MEMORY_MAX = 96, 220, 250
# Files of earlier versions.
REMOVED = (
    *(f"{RECEIVER}/{name}" for name in ("settings.json", "channels.json")),
    *(f"/usr/local/lib/minipc/{name}" for name in ("watcher", "minipc_machine/watcher.py")),
    "/var/lib/minipc-watcher/state.json",
)


@deploy("watcher")
def watcher() -> None:
    settings = config()
    limits = {"retention_mb": settings.watcher.retention_mb // 2, "memory_mb": MEMORY, "set_memory_mb": SET_MEMORY}
    values = settings_by_name(settings) | {
        "prometheus": settings.prometheus.model_copy(update=limits),
        "set_memory_max_mb": SET_MEMORY_MAX,
        "ports": MONITORING,
        "listen": "127.0.0.1",
        "etc": ETC,
        "offsite_url": None,
        "modules": modules(()),
        "probes": outside(settings),
        "measured": {},
        "services": settings.services.model_copy(update={"declared": ()}),
    }

    # install
    packages = [f"prometheus-{exporter}-exporter" for exporter in EXPORTERS]
    install(name="Install Prometheus and exporters", packages=["prometheus", "promtool", *packages])
    server.user(
        name="Create the account of the receiver",
        user=USER,
        system=True,
        home="/var/lib/minipc-watcher",
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )

    # configure
    files = place(
        name="Configure the probes from outside and their rules",
        component="watcher",
        entries=[
            Directory(ETC),
            Directory(f"{ETC}/scrape.d"),
            Directory(f"{ETC}/rules.d"),
            *registered_outside(ETC, values, settings.prometheus.pace, settings.alertmanager.runbook_url),
            File(
                "prometheus/prometheus.yml.j2",
                f"{ETC}/prometheus.yml",
                check="promtool check config --syntax-only {path}",
            ),
            File(
                "prometheus/blackbox.yml.j2",
                f"{ETC}/blackbox.yml",
                check="prometheus-blackbox-exporter --config.check --config.file={path}",
            ),
        ],
        values=values,
    )
    programs = place(
        name="Configure the units of Prometheus and the exporters",
        component="watcher",
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            File("prometheus/minipc-monitoring.slice.j2", f"{SYSTEMD}/minipc-monitoring.slice"),
            File("prometheus/prometheus.conf.j2", f"{SYSTEMD}/prometheus.service.d/minipc.conf"),
            *(
                File(
                    f"prometheus/{name}-exporter.conf.j2", f"{SYSTEMD}/prometheus-{name}-exporter.service.d/minipc.conf"
                )
                for name in EXPORTERS
            ),
        ],
        values=values,
    )
    received = receiver(settings, values)

    # activate
    running = [*(f"prometheus-{exporter}-exporter.service" for exporter in EXPORTERS)]
    units(name="Start the exporters", units=running, restart_on=[programs])
    unit(name="Start Prometheus", unit="prometheus.service", restart_on=[programs], reload_on=[files])
    unit(name="Start the receiver of the mini PC's metrics", unit="minipc-watcher.service", restart_on=[received])


def receiver(settings: Settings, values: dict[str, object]) -> Placed:
    """Configure the server that receives metrics: TLS, and only with the mini PC's certificate and password."""
    found = secrets(
        {
            "tls": TLS_KEY,
            "client": WATCHER_CLIENT_KEY,
            "password": WATCHER_PASSWORD,
            "alertmanager": WATCHER_ALERTMANAGER_PASSWORD,
        }
    )
    address = settings.offsite.address or host.data.ssh_hostname
    own = values | {"etc": RECEIVER, "hash": hashed(found["password"], "watcher")}
    alerts = rules("watcher", "received", own, settings.prometheus.pace, settings.alertmanager.runbook_url)
    return place(
        name="Configure the receiver of the mini PC's metrics",
        component="watcher",
        entries=[
            Directory(RECEIVER),
            Directory(f"{RECEIVER}/scrape.d"),
            Directory(f"{RECEIVER}/rules.d"),
            *(Absent(path) for path in REMOVED),
            Content(alerts, f"{RECEIVER}/rules.d/received.yml", check="promtool check rules {path}"),
            File("prometheus/prometheus.yml.j2", f"{RECEIVER}/prometheus.yml"),
            Content(ed25519.certificate(found["tls"], address).encode(), f"{RECEIVER}/tls.crt"),
            SecretFile("", f"{RECEIVER}/tls.key", owner=USER, content=ed25519.pem(found["tls"]).encode()),
            Content(ed25519.certificate(found["client"], "minipc", client=True).encode(), f"{RECEIVER}/client.crt"),
            SecretFile("web.yml.j2", f"{RECEIVER}/web.yml", owner=USER),
            SecretFile(
                "", f"{RECEIVER}/alertmanager.password", owner=USER, content=found["alertmanager"].reveal().encode()
            ),
            File("minipc-watcher.service.j2", f"{SYSTEMD}/minipc-watcher.service"),
        ],
        values=own,
    )


if belongs_here("watcher"):
    watcher()
