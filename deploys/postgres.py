"""PostgreSQL 17: everything that must not be lost.

pyinfra inventory/production.py deploys/postgres.py
"""

from pyinfra import host
from pyinfra.api import deploy

from minipc.deploying import belongs_here, cluster_nodes, config, secrets
from minipc.facts.machine import MachineSize
from minipc.operations import File, install, place, unit
from minipc.operations.postgres import access_present, cluster_present, recovery_ended
from minipc.sizes import postgres_memory

VERSION = "17"
ETC = f"/etc/postgresql/{VERSION}/main"


@deploy("postgres")
def postgres() -> None:
    settings = config()
    passwords = secrets({role.name: f"postgres.password.{role.name}" for role in settings.postgres.roles})
    memory = postgres_memory(host.get_fact(MachineSize)["memory_mb"], settings.postgres.shared_buffers_percent)

    # install
    forbidden = place(
        name="forbid an accidental cluster",
        component="postgres",
        entries=[File("createcluster.conf", "/etc/postgresql-common/createcluster.conf")],
    )
    install(name="install packages", packages=[f"postgresql-{VERSION}"], after=forbidden)
    cluster_present(
        name="have the database: restored, else new",
        version=VERSION,
        cluster="main",
        from_backup=settings.postgres.from_backup,
    )

    # configure
    files = place(
        name="configure",
        component="postgres",
        entries=[
            File("postgresql.conf.j2", f"{ETC}/postgresql.conf", owner="postgres"),
            File("pg_hba.conf.j2", f"{ETC}/pg_hba.conf", owner="postgres", mode="640"),
            File("override.conf", f"/etc/systemd/system/postgresql@{VERSION}-main.service.d/minipc.conf"),
        ],
        values={
            "postgres": settings.postgres,
            "backups": settings.backups,
            "host": settings.host,
            "nodes": cluster_nodes(),
            "memory": memory,
        },
    )

    # activate
    unit(name="activate", unit=f"postgresql@{VERSION}-main.service", restart_on=[files])
    recovery_ended(
        name="wait until the database takes writes",
        port=settings.postgres.port,
        from_backup=settings.postgres.from_backup,
    )
    access_present(
        name="create roles, databases and extensions",
        port=settings.postgres.port,
        roles=settings.postgres.roles,
        databases=settings.postgres.databases,
        passwords=passwords,
        extensions=["pg_stat_statements"],
    )


if belongs_here("postgres"):
    postgres()
