"""PostgreSQL 17: the data that must not be lost.

pyinfra inventory/production.py deploys/postgres.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import systemd

from minipc.config.services import extension_packages
from minipc.core.sizes import postgres_memory
from minipc.pyinfra_ext.deploying import belongs_here, cluster_nodes, config, offsite_address, secrets
from minipc.pyinfra_ext.facts.machine import MachineSize
from minipc.pyinfra_ext.operations import Absent, Content, Directory, File, install, place, programs, unit
from minipc.pyinfra_ext.operations.postgres import access_present, cluster_present, recovery_ended
from minipc_machine import schema
from minipc_machine.disk_space import SETTINGS, DiskSettings
from minipc_machine.metrics import TEXTFILES

VERSION = "17"
ETC = f"/etc/postgresql/{VERSION}/main"
DATA = f"/var/lib/postgresql/{VERSION}/main"
SYSTEMD = "/etc/systemd/system"


@deploy("postgres")
def postgres() -> None:
    settings = config()
    passwords = secrets({role.name: f"postgres.password.{role.name}" for role in settings.postgres.roles})
    memory = postgres_memory(host.get_fact(MachineSize)["memory_mb"], settings.postgres.shared_buffers_percent)

    # install
    forbidden = place(
        name="Forbid automatic creation of a cluster",
        component="postgres",
        entries=[File("createcluster.conf", "/etc/postgresql-common/createcluster.conf")],
    )
    install(
        name="Install PostgreSQL",
        packages=[f"postgresql-{VERSION}", *extension_packages(settings.services.declared)],
        after=forbidden,
    )
    cluster_present(
        name="Restore or initialise the database",
        version=VERSION,
        cluster="main",
        from_backup=settings.postgres.from_backup,
    )

    # configure
    values = {
        "postgres": settings.postgres,
        "backups": settings.backups,
        "host": settings.host,
        "nodes": cluster_nodes(),
        "memory": memory,
    }
    files = place(
        name="Configure PostgreSQL",
        component="postgres",
        entries=[
            File("postgresql.conf.j2", f"{ETC}/postgresql.conf", owner="postgres"),
            # It outranks every other file: nothing may be in it.
            Content(b"", f"{DATA}/postgresql.auto.conf", owner="postgres", mode="600"),
            File("override.conf", f"{SYSTEMD}/postgresql@{VERSION}-main.service.d/minipc.conf"),
        ],
        values=values,
    )
    access = place(
        name="Configure PostgreSQL access",
        component="postgres",
        entries=[
            File("pg_hba.conf.j2", f"{ETC}/pg_hba.conf", owner="postgres", mode="640"),
            File("pg_ident.conf.j2", f"{ETC}/pg_ident.conf", owner="postgres", mode="640"),
        ],
        values=values,
    )
    address = offsite_address()
    space = programs(
        name="Install the program that keeps disk space free",
        component="postgres",
        programs=["disk-space"],
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            Content(
                schema.dump(DiskSettings([address, str(settings.offsite.sftp_port)] if address else [])).encode(),
                str(SETTINGS),
            ),
            File("minipc-disk-space.service.j2", f"{SYSTEMD}/minipc-disk-space.service"),
            File("minipc-disk-space.timer", f"{SYSTEMD}/minipc-disk-space.timer"),
        ],
    )

    # activate
    unit(name="Start PostgreSQL", unit=f"postgresql@{VERSION}-main.service", restart_on=[files], reload_on=[access])
    recovery_ended(
        name="Wait until the database accepts writes",
        port=settings.postgres.port,
        from_backup=settings.postgres.from_backup,
    )
    access_present(
        name="Create roles, databases and extensions",
        port=settings.postgres.port,
        roles=settings.postgres.roles,
        databases=settings.postgres.databases,
        passwords=passwords,
        extensions=["pg_stat_statements"],
    )
    unit(name="Enable the timer that keeps disk space free", unit="minipc-disk-space.timer", restart_on=[space])
    wal_stream(enabled=address is not None and settings.backups.wal_stream)


def wal_stream(*, enabled: bool) -> None:
    """Send WAL to the off-site host as it is written, or stop that."""
    service = "minipc-wal-stream.service"
    if not enabled:
        systemd.service(name="Stop sending WAL as it is written", service=service, running=False, enabled=False)
        files = [Absent(f"{SYSTEMD}/{service}"), Absent(f"{TEXTFILES}/minipc_wal_stream.prom")]
        place(name="Remove the unit that sends WAL", component="postgres", entries=files)
        return
    sending = programs(
        name="Install the program that sends WAL as it is written",
        component="postgres",
        programs=["wal-stream"],
        entries=[File(f"{service}.j2", f"{SYSTEMD}/{service}")],
    )
    unit(name="Send WAL as it is written", unit=service, restart_on=[sending])


if belongs_here("postgres"):
    postgres()
