"""Repositories of the backups (pgBackRest, restic), and the programs that back up and restore.

Runs before PostgreSQL: on a machine without a database the first question is whether there is a backup of one.

    pyinfra inventory/production.py deploys/repositories.py
"""

from pyinfra.api import deploy

from minipc.config import Settings, offsite
from minipc.config.components import backup_paths
from minipc.config.services import volumes_of
from minipc.core.addresses import bracketed
from minipc.pyinfra_ext.deploying import belongs_here, config, not_exercised, offsite_address, secrets
from minipc.pyinfra_ext.guards import refuse_another_database
from minipc.pyinfra_ext.operations import Absent, Content, Directory, File, SecretFile, install, place, programs, units
from minipc.pyinfra_ext.operations.backups import state_restored
from minipc.remote import psql
from minipc.secrets import Secret, ed25519
from minipc.secrets.catalogue import (
    REST_PASSWORD,
    RESTIC_PASSWORD,
    S3_ACCESS_KEY,
    S3_SECRET_KEY,
    SFTP_HOST_KEY,
    SFTP_KEY,
    TLS_KEY,
    repository_cipher,
)
from minipc.services.images import ON_MACHINE
from minipc.services.queues import queues
from minipc_machine import schema, storage_box
from minipc_machine.replaced import ReplacedSettings
from minipc_machine.repositories import ResticSettings
from minipc_machine.repositories import Settings as MachineSettings
from minipc_machine.sftp import Server
from minipc_machine.storage_box import StorageBox
from minipc_machine.wal_files import SETTINGS as WAL_SERVER

ETC = offsite.ETC
PGBACKREST = "/etc/pgbackrest"
SYSTEMD = "/etc/systemd/system"


@deploy("repositories")
def repositories() -> None:
    settings = config()
    refuse_another_database()
    address = offsite_address()
    repos = [1, 2] if settings.has_offsite else [1]
    names = {str(repo): repository_cipher(repo) for repo in repos}
    if settings.has_offsite:
        names |= {"restic": RESTIC_PASSWORD}
    else:
        for what in ("off-site backups of the database (repo2)", "backups of configuration and state (restic)"):
            not_exercised(what, offsite.NONE, "repositories")
    if address:
        names |= {"sftp": SFTP_KEY, "host": SFTP_HOST_KEY, "tls": TLS_KEY, "rest": REST_PASSWORD}
    if settings.offsite.s3:
        names |= {"access": S3_ACCESS_KEY, "secret": S3_SECRET_KEY}
    if settings.offsite.sftp:
        names |= {"sftp": SFTP_KEY}
    for what, why in offsite.not_provided(settings).items():
        not_exercised(what, why, "repositories")
    found = secrets(names)

    # install
    cas = ["ca-certificates"] if settings.offsite.s3 else []
    sftp = ["openssh-client", "openssl"] if address else []
    install(name="Install pgBackRest and restic", packages=["pgbackrest", "python3", "restic", *cas, *sftp])

    # configure
    pgbackrest(settings, sftp_server(settings, address, found), found)
    restic(settings, address, found)
    install_programs(repos, wal_server(settings, address))
    if address:
        noticing_replacement(settings, address, found["sftp"])
    if settings.has_offsite and settings.postgres.from_backup != "refuse":
        state_restored(name="Restore the archives of released images", paths=[ON_MACHINE])


def sftp_server(settings: Settings, address: str | None, found: dict[str, Secret]) -> StorageBox | None:
    """Return the SFTP server that keeps repo2: of the off-site host, or a storage box; None if there is none."""
    if address:
        host_key = ed25519.public_key(found["host"])
        return StorageBox(address, settings.offsite.sftp_port, "minipc-sftp", "", [host_key])
    return offsite.storage_box_of(settings)


def pgbackrest(settings: Settings, server: StorageBox | None, found: dict[str, Secret]) -> None:
    """Configure the repositories of the database: repo1 on the machine, repo2 off-site."""
    entries = [
        Directory(PGBACKREST, group="postgres", mode="750"),
        SecretFile("pgbackrest.conf.j2", f"{PGBACKREST}/pgbackrest.conf", group="postgres", mode="640"),
    ]
    if server:
        entries += [
            Content(server.known_hosts.encode(), storage_box.KNOWN_HOSTS),
            # libssh2 reads it as the account postgres.
            SecretFile("", storage_box.KEY, owner="postgres", content=found["sftp"].reveal().encode()),
        ]
    elif settings.offsite.s3:
        entries.append(Absent(storage_box.KEY))
        if settings.offsite.s3.ca:
            entries.append(Content(settings.offsite.s3.ca.encode(), f"{PGBACKREST}/offsite.crt"))
    place(
        name="Configure pgBackRest",
        component="repositories",
        entries=entries,
        values={
            "backups": settings.backups,
            "postgres": settings.postgres,
            "sftp": server,
            "s3": settings.offsite.s3,
            "ciphers": found,
        },
    )


def restic(settings: Settings, address: str | None, found: dict[str, Secret]) -> None:
    """Configure the repository of configuration and state, which is off-site only."""
    entries = [Directory(ETC, mode="700")]
    url, bucket, box = "", offsite.bucket_of(settings), offsite.storage_box_of(settings)
    if address:
        server = f"{bracketed(address)}:{settings.offsite.rest_port}"
        url = f"rest:https://minipc:{found['rest'].reveal()}@{server}/minipc/"
        entries.append(Content(ed25519.certificate(found["tls"], address).encode(), f"{ETC}/offsite.crt"))
    elif bucket:
        url = offsite.restic_url(bucket)
        entries.append(SecretFile("s3.credentials.j2", f"{ETC}/s3.credentials", values={"key": found}))
        if bucket.ca:
            entries.append(Content(bucket.ca.encode(), f"{ETC}/offsite.crt"))
    elif box:
        url = offsite.restic_url(box)
    if not bucket:
        entries.append(Absent(f"{ETC}/s3.credentials"))
    if url:
        entries += [
            SecretFile("", f"{ETC}/restic.repository", content=f"{url}\n".encode()),
            SecretFile("", f"{ETC}/restic.password", content=f"{found['restic'].reveal()}\n".encode()),
        ]
    place(name="Configure restic", component="repositories", entries=entries)


def wal_server(settings: Settings, address: str | None) -> Server | None:
    """Return where WAL is sent as it is written; None if it is not."""
    if address is None or not settings.backups.wal_stream:
        return None
    return Server("minipc-sftp", address, settings.offsite.sftp_port, "/wal")


def install_programs(repos: list[int], stream: Server | None) -> None:
    """Install what backs up and restores on the machine, without a controller."""
    places = {"bucket": offsite.bucket_of(config()), "storage-box": offsite.storage_box_of(config())}
    programs(
        name="Install the backup and restore programs",
        component="repositories",
        programs=["stanza", "backup", "bucket", "copy-sqlite", "restore", "restore-state", "failed", "storage-box"],
        entries=[
            Directory("/var/lib/minipc/backups"),
            Directory("/var/lib/prometheus/node-exporter"),
            Content(schema.dump(_machine_settings(repos)).encode(), f"{ETC}/settings.json"),
            *(
                Content(schema.dump(place).encode(), f"{ETC}/{name}.json") if place else Absent(f"{ETC}/{name}.json")
                for name, place in places.items()
            ),
            Content(schema.dump(stream).encode(), str(WAL_SERVER)) if stream else Absent(str(WAL_SERVER)),
        ],
    )


def noticing_replacement(settings: Settings, address: str, key: Secret) -> None:
    """Install what stops this machine from serving when the off-site host says that another one has replaced it."""
    own = ReplacedSettings(
        key=ed25519.public_key(key),
        address=address,
        port=settings.offsite.sftp_port,
        ssh=list(settings.firewall.operator_tcp),
        vpn=settings.vpn.port,
        services=[service.name for service in settings.services.declared],
    )
    asking = programs(
        name="Install the program that notices a replacement",
        component="repositories",
        programs=["replaced"],
        entries=[
            Content(schema.dump(own).encode(), f"{ETC}/replaced.json"),
            File("minipc-replaced.service.j2", f"{SYSTEMD}/minipc-replaced.service"),
            File("minipc-replaced.timer", f"{SYSTEMD}/minipc-replaced.timer"),
        ],
    )
    units(
        name="Ask whether this machine was replaced",
        units=["minipc-replaced.timer", "minipc-replaced.service"],
        restart_on=[asking],
    )


def _machine_settings(repos: list[int]) -> MachineSettings:
    settings = config()
    return MachineSettings(
        stanza="main",
        host=settings.host.name,
        port=settings.postgres.port,
        logins=psql.logins(settings.postgres),
        repos=repos,
        processes=settings.backups.processes,
        paths=[*backup_paths(), *(("redis", each.folder) for each in queues(settings))],
        restic=ResticSettings(
            f"{ETC}/restic.repository",
            f"{ETC}/restic.password",
            offsite.ca_file(settings),
            offsite.restic_environment(settings),
            offsite.restic_options(settings),
        )
        if settings.has_offsite
        else None,
        volumes=volumes_of(settings.services.declared),
        storage=offsite.storage_name(settings),
    )


if belongs_here("repositories"):
    repositories()
