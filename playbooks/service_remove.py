"""Show or remove what a service has left on the machine once its service file is gone: database, volumes, queue.

minipc service remove NAME [--delete-data]
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

import click

from minipc.config import offsite
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, RefusedError
from minipc.core.formatting import one_line
from minipc.core.verdicts import SIGNS
from minipc.remote import psql
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import on, query
from minipc.remote.results import parse_result
from minipc.services.queues import FOLDER as QUEUES
from minipc_machine.volume_files import STAGING, VOLUMES
from playbooks import backup

LIMIT_S = 6 * 3600
# A role that only this database knows: its owner, and those that may connect to it.
_ROLES = """
SELECT coalesce(json_agg(DISTINCT rolname), '[]') FROM pg_roles r, pg_database d
WHERE datname = :'name' AND NOT rolsuper AND rolname !~ '^pg_' AND rolname <> ALL (string_to_array(:'kept', ','))
  AND (r.oid = datdba OR EXISTS (SELECT FROM aclexplode(datacl) a WHERE a.grantee = r.oid));
"""
_DROP = """
SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', :'name') \\gexec
SELECT format('DROP ROLE IF EXISTS %I', name) FROM unnest(string_to_array(:'roles', ',')) name \\gexec
"""


@dataclass(frozen=True)
class Left:
    """What is left of a service.

    Attributes:
        database: its name; empty if there is none.
        roles: the roles of the database, and of no other.
        folders: of its volumes and its queue.
        sizes: one sentence for each.
    """

    database: str
    roles: list[str]
    folders: list[str]
    sizes: list[str]


def remove(
    environment: Environment,
    alias: str | None,
    name: str,
    database: str | None,
    *,
    delete: bool,
    ask: Callable[[], str],
) -> int:
    """Show what is left of a service, and delete it if that is wanted. Return the exit code.

    Args:
        database: its name; None: that of the service, with underscores.
        ask: returns the name of the service as a person typed it.

    Raises:
        RefusedError: the service is declared, or another name was typed. Nothing was changed.
        CouldNotVerifyError: the machine cannot be reached.
    """
    target = the_target(environment, alias)
    declared = target.settings.services.declared
    wanted = database or name.replace("-", "_")
    users = [each.name for each in declared if each.postgres and each.postgres.database == wanted]
    if users or name in {each.name for each in declared}:
        raise RefusedError(
            f"{(users or [name])[0]} is declared: it may be using this data",
            f"remove its file from services/, then run `minipc apply` and `minipc service remove {name}` again",
        )
    left = look(target, name, wanted)
    for line in left.sizes:
        click.echo(line)
    if not left.sizes:
        click.echo(f"nothing is left of {name} on {target.alias}")
        return EXIT_PASS
    if not delete:
        click.echo(f"kept; `minipc service remove {name} --delete-data` deletes it")
        return EXIT_PASS
    if ask() != name:
        raise RefusedError("another name was typed", "nothing was deleted")
    click.echo("a backup first:")
    if not _backed_up(environment, target, name, left):
        click.echo(f"{SIGNS['fail']} the backup failed; nothing was deleted")
        return EXIT_FAIL
    if left.database:
        variables = ["-v", f"name={left.database}", "-v", f"roles={','.join(left.roles)}"]
        on(target, psql.command(target.settings.postgres, psql.SUPERUSER, *variables), _DROP, timeout_s=LIMIT_S)
    if left.folders:
        on(target, f"rm -rf -- {shlex.join([*left.folders, str(STAGING / name)])}", timeout_s=LIMIT_S)
    click.echo(f"{SIGNS['pass']} deleted; it is in the backups until they expire")
    return EXIT_PASS


def look(target: Target, name: str, database: str) -> Left:
    """Find what is left of a service. Raises CouldNotVerifyError."""
    postgres = target.settings.postgres
    found = query(target, psql.SUPERUSER, "SELECT datname FROM pg_database WHERE NOT datistemplate")
    there = database in found.splitlines() and database not in (psql.SUPERUSER, psql.OWN)
    folders = [str(VOLUMES / name), f"{QUEUES}/{name}"]
    sizes = on(target, f"du -sh {shlex.join(folders)} 2>/dev/null || true", timeout_s=600).splitlines()
    roles: list[str] = []
    if there:
        kept = ",".join([psql.OWN, *(each.name for each in postgres.roles)])
        command = psql.command(postgres, psql.SUPERUSER, "-v", f"name={database}", "-v", f"kept={kept}")
        roles = parse_result(list[str], on(target, command, _ROLES), f"{target.alias}: roles of {database}")
    lines = [f"database {database}, roles {', '.join(roles)}"] if there else []
    lines += [one_line(" ".join(reversed(line.split("\t", 1)))) for line in sizes]
    return Left(database if there else "", roles, [line.split("\t", 1)[1] for line in sizes], lines)


def _backed_up(environment: Environment, target: Target, name: str, left: Left) -> bool:
    """Back up the database, and the folders, which the nightly backup does not contain any more."""
    if backup.now(environment, target.alias) != EXIT_PASS:
        return False
    if left.folders and target.settings.has_offsite:
        words = ["backup", "--quiet", "--host", target.settings.host.name, "--tag", f"removed:{name}", *left.folders]
        on(target, f"HOME=/root {offsite.restic_command(target.settings)} {shlex.join(words)}", timeout_s=LIMIT_S)
        click.echo(f"restic: {' '.join(left.folders)}, tag removed:{name}")
    return True
