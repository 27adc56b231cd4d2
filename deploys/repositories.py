"""Where backups are and how to read them: pgBackRest's and restic's repositories, and the programs that use them.

Before PostgreSQL: on a machine without a database the first question is whether there is a backup of one.

    pyinfra inventory/production.py deploys/repositories.py
"""

import json
from typing import Any

from pyinfra.api import deploy

from minipc import keys
from minipc.addresses import bracketed, known_host
from minipc.components import backup_paths
from minipc.config import Settings
from minipc.deploying import belongs_here, config, not_exercised, offsite_address, secrets
from minipc.guards import refuse_another_database
from minipc.operations import Content, Directory, File, SecretFile, install, place
from minipc.secrets import Secret
from minipc.secrets.catalogue import (
    REST_PASSWORD,
    RESTIC_PASSWORD,
    SFTP_HOST_KEY,
    SFTP_KEY,
    TLS_KEY,
    repository_cipher,
)

ETC = "/etc/minipc/backups"
PGBACKREST = "/etc/pgbackrest"
BIN = "/usr/local/lib/minipc"
PROGRAMS = {"stanza": "stanza", "backup": "backup", "restore": "restore", "restore-state": "restore_state"}


@deploy("repositories")
def repositories() -> None:
    settings = config()
    refuse_another_database()
    address = offsite_address()
    repos = [1, 2] if address else [1]
    names = {str(repo): repository_cipher(repo) for repo in repos}
    if address:
        names |= {"sftp": SFTP_KEY, "host": SFTP_HOST_KEY, "tls": TLS_KEY}
        names |= {"rest": REST_PASSWORD, "restic": RESTIC_PASSWORD}
    else:
        for what in ("off-site backups of the database (repo2)", "backups of configuration and state (restic)"):
            not_exercised(what, "there is no off-site machine: backups_offsite is None", "repositories")
    found = secrets(names)

    # install
    install(name="install packages", packages=["pgbackrest", "python3", "restic"])

    # configure
    pgbackrest(settings, address, found)
    restic(settings, address, found)
    programs(repos)


def pgbackrest(settings: Settings, address: str | None, found: dict[str, Secret]) -> None:
    """The database's repositories: repo1 on the machine, repo2 off-site."""
    entries = [
        Directory(PGBACKREST, group="postgres", mode="750"),
        SecretFile("pgbackrest.conf.j2", f"{PGBACKREST}/pgbackrest.conf", group="postgres", mode="640"),
    ]
    if address:
        host_key = keys.public_key(found["host"])
        known_hosts = f"{known_host(address, settings.offsite.sftp_port, host_key)}\n{address} {host_key}\n"
        entries += [
            Content(known_hosts.encode(), f"{PGBACKREST}/known_hosts"),
            # libssh2 reads it as postgres.
            SecretFile("", f"{PGBACKREST}/sftp_key", owner="postgres", content=found["sftp"].reveal().encode()),
        ]
    place(
        name="configure pgBackRest",
        component="repositories",
        entries=entries,
        values={
            "backups": settings.backups,
            "postgres": settings.postgres,
            "offsite": {"address": address, "sftp_port": settings.offsite.sftp_port} if address else None,
            "ciphers": found,
        },
    )


def restic(settings: Settings, address: str | None, found: dict[str, Secret]) -> None:
    """The repository of configuration and state, off-site only."""
    entries = [Directory(ETC, mode="700")]
    if address:
        server = f"{bracketed(address)}:{settings.offsite.rest_port}"
        url = f"rest:https://minipc:{found['rest'].reveal()}@{server}/minipc/"
        entries += [
            SecretFile("", f"{ETC}/restic.repository", content=f"{url}\n".encode()),
            SecretFile("", f"{ETC}/restic.password", content=f"{found['restic'].reveal()}\n".encode()),
            Content(keys.certificate(found["tls"], address).encode(), f"{ETC}/offsite.crt"),
        ]
    place(name="configure restic", component="repositories", entries=entries)


def programs(repos: list[int]) -> None:
    """What backs up and restores, on the machine: it needs no controller."""
    place(
        name="place the programs",
        component="repositories",
        entries=[
            Directory("/var/lib/minipc/backups"),
            Directory("/var/lib/prometheus/node-exporter"),
            Content(json.dumps(_machine_settings(repos), indent=1).encode() + b"\n", f"{ETC}/settings.json"),
            File("common.py", f"{BIN}/common.py"),
            File("failed.sh", f"{BIN}/failed", mode="755", check="sh -n {path}"),
            *(File(f"{source}.py", f"{BIN}/{program}", mode="755") for program, source in PROGRAMS.items()),
        ],
    )


def _machine_settings(repos: list[int]) -> dict[str, Any]:
    """What the programs on the machine need to know; no secrets."""
    settings = config()
    return {
        "stanza": "main",
        "host": settings.host.name,
        "port": settings.postgres.port,
        "repos": repos,
        "processes": settings.backups.processes,
        "paths": backup_paths(),
        "restic": {
            "repository_file": f"{ETC}/restic.repository",
            "password_file": f"{ETC}/restic.password",
            "ca_file": f"{ETC}/offsite.crt",
        }
        if settings.backups.offsite
        else None,
    }


if belongs_here("repositories"):
    repositories()
