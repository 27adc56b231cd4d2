"""The service itself. In K3s: its passwords, the rest is ArgoCD's. In the lab also under systemd, as a stand-in.

pyinfra inventory/production.py deploys/workload.py
"""

from typing import Any

from pyinfra.api import deploy
from pyinfra.operations import server

from minipc.config import Settings
from minipc.deploying import artifact, belongs_here, config, secrets
from minipc.operations import Content, Directory, File, Placed, SecretFile, install, place, unit, units
from minipc.operations.k3s import secret_present
from minipc.paths import ROOT
from minipc.secrets import Secret

INSTALL_DIR = "/opt/workload"
SOURCE = ROOT / "workload"
WORKERS = ["ingest", "forecast", "push"]


@deploy("workload")
def workload() -> None:
    settings = config()
    names = {"database": "postgres.password.workload", "redis": "redis.password.workload", "sentry": "sentry.dsn"}
    passwords = secrets(names, optional=[] if settings.workload.sentry else ["sentry"])
    if settings.workload.runtime == "k3s":
        in_k3s(passwords)
    else:
        stand_in(settings, passwords)


def in_k3s(passwords: dict[str, Secret]) -> None:
    """Its passwords, as a Secret of the cluster: they are never in Git, and never in a file of the machine."""
    if artifact("k3s", component="workload") is None:
        return
    keys = {"database": "DATABASE_PASSWORD", "redis": "REDIS_PASSWORD", "sentry": "SENTRY_DSN"}
    secret_present(
        name="give it its passwords",
        namespace="workload",
        secret="workload",  # noqa: S106 - its name
        data={keys[name]: secret.reveal() for name, secret in passwords.items()},
        labels={"app.kubernetes.io/part-of": "workload"},
    )
    drift = place(
        name="place what looks for changes by hand",
        component="workload",
        entries=[
            Directory("/usr/local/lib/minipc"),
            Directory("/var/lib/prometheus/node-exporter"),
            File("drift.py", "/usr/local/lib/minipc/gitops-drift", mode="755"),
            File("minipc-gitops-drift.service", "/etc/systemd/system/minipc-gitops-drift.service"),
            File("minipc-gitops-drift.timer", "/etc/systemd/system/minipc-gitops-drift.timer"),
        ],
    )
    unit(name="look for changes by hand", unit="minipc-gitops-drift.timer", restart_on=[drift])


def stand_in(settings: Settings, passwords: dict[str, Secret]) -> None:
    """The same code under systemd, on the same port."""
    # install
    packages = (SOURCE / "packages.txt").read_text(encoding="utf-8").split()
    install(name="install packages", packages=packages)
    # Its home is the code, which stays root's.
    server.user(
        name="create the account",
        user="workload",
        system=True,
        home=INSTALL_DIR,
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )
    code = place_code()

    # configure
    files = place(
        name="configure",
        component="workload",
        entries=[
            Directory("/etc/workload", mode="700"),
            SecretFile("env.j2", "/etc/workload/env"),
            File("workload-migrate.service.j2", "/etc/systemd/system/workload-migrate.service"),
            File("workload-api.service.j2", "/etc/systemd/system/workload-api.service"),
            File("workload-worker@.service.j2", "/etc/systemd/system/workload-worker@.service"),
        ],
        values=_environment(settings, passwords) | {"version": code.digest[:12]},
    )

    # activate
    unit(name="migrate the database", unit="workload-migrate.service", restart_on=[code, files])
    services = ["workload-api.service", *(f"workload-worker@{worker}.service" for worker in WORKERS)]
    units(name="activate the API and the workers", units=services, restart_on=[code, files])


def place_code() -> Placed:
    """The package as it is in this repository."""
    sources = sorted(
        path for path in (SOURCE / "minipc_workload").rglob("*") if path.suffix in {".py", ".sql", ".mako"}
    )
    return place(
        name="place the code",
        component="workload",
        entries=[
            Directory(INSTALL_DIR),
            *(Content(path.read_bytes(), f"{INSTALL_DIR}/{path.relative_to(SOURCE)}") for path in sources),
        ],
    )


def _environment(settings: Settings, passwords: dict[str, Secret]) -> dict[str, Any]:
    """What the service is told of the machine."""
    return {
        "environment": settings.environment,
        "install_dir": INSTALL_DIR,
        "database_host": settings.host.service_address,
        "database_port": settings.postgres.port,
        "database_name": "workload",
        "database_user": "workload",
        "database_password": passwords["database"].reveal(),
        "redis_host": settings.host.service_address,
        "redis_port": settings.redis.port,
        "redis_username": "workload",
        "redis_password": passwords["redis"].reveal(),
        "port": settings.workload.port,
        "metrics_ports": settings.workload.metrics_ports,
        "worker_stale_s": settings.workload.worker_stale_s,
        "sentry_dsn": passwords["sentry"].reveal() if "sentry" in passwords else "",
    }


if belongs_here("workload"):
    workload()
