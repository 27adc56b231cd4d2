"""Move the data of a service in, compare it with where it came from, and back it up.

minipc service import NAME --from postgresql://… | --dump FILE | --files DIR [--again]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from minipc.config.service import Service
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, ConfigError, MinipcError
from minipc.core.polling import wait_until
from minipc.core.verdicts import SIGNS
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import on
from minipc.secrets import load
from minipc.secrets.catalogue import postgres_password
from minipc.secrets.secret import Secret
from minipc.services import importing
from minipc.services.stopping import start_script, stop_script
from playbooks import backup, rebuild

READY_WITHIN_S = 120
_MIGRATION_LIMIT_S = 3600


@dataclass(frozen=True)
class Wanted:
    """What is to be imported; see `minipc service import --help`."""

    service: str
    url: str | None
    dump: Path | None
    files: Path | None
    volume: str | None
    again: bool


def run(environment: Environment, alias: str | None, wanted: Wanted) -> int:
    """Import, print the comparison of each table and volume, and take a backup. Return the exit code.

    Raises:
        ConfigError: there is no such service, or it has no such volume.
        RefusedError: the database or the volume is not empty.
        MinipcError: the import failed; the database is as before.
    """
    target = the_target(environment, alias)
    service = target.settings.services.named(wanted.service)
    volume = _volume(service, wanted.volume) if wanted.files else ""
    started = time.monotonic()
    if wanted.again:
        click.echo("a backup of what is there:")
        if backup.now(environment, alias) != EXIT_PASS:
            return EXIT_FAIL
    failed = False
    with stopped(target, service):
        if wanted.url or wanted.dump:
            failed |= _show(_database(environment, target, service, wanted), "rows")
        if wanted.files:
            failed |= _show([importing.folder(target, service, volume, wanted.files, again=wanted.again)], "files")
        click.echo(f"imported in {time.monotonic() - started:.0f} s")
    click.echo("a backup of it:")
    backed_up = backup.now(environment, alias) == EXIT_PASS
    return EXIT_PASS if backed_up and not failed else EXIT_FAIL


@contextmanager
def stopped(target: Target, service: Service) -> Iterator[None]:
    """Stop a service that runs here while its data is replaced; then migrate it, start it, and print how long it took.

    Raises:
        MinipcError: the migration failed, with its output, or the service does not become ready.
    """
    runtime, began = target.settings.services.runtime, time.monotonic()
    runs = on(target, stop_script(service, runtime), timeout_s=300) == "stopped"
    if not runs:
        click.echo(f"{service.name} does not run here yet: its release migrates and starts it")
        yield
        return
    try:
        yield
    except BaseException:
        # A failed import has changed nothing. Its reason must not be hidden by what a start says.
        with suppress(MinipcError):
            on(target, start_script(service, runtime), timeout_s=_MIGRATION_LIMIT_S)
        raise
    imported = time.monotonic()
    on(target, start_script(service, runtime), timeout_s=_MIGRATION_LIMIT_S)
    state = wait_until(
        lambda: rebuild.ready_on_machine(target, service),
        within_s=READY_WITHIN_S,
        every_s=0.2,
        until=lambda found: found == rebuild.READY,
    )
    if state != rebuild.READY:
        raise MinipcError(
            f"{service.name} is not ready after {READY_WITHIN_S} s: {state}",
            f"`minipc logs --service {service.name} --since 10m`",
        )
    ready = time.monotonic()
    click.echo(
        f"downtime of {service.name}: {ready - began:.1f} s, of which {imported - began:.1f} s to copy and compare, "
        f"and {ready - imported:.1f} s to migrate and start"
    )


def _database(
    environment: Environment, target: Target, service: Service, wanted: Wanted
) -> Iterable[importing.Compared]:
    if service.postgres is None:
        raise ConfigError(f"{service.name} has no `postgres`", "declare it in the service file, and converge")
    name = postgres_password(service.postgres.roles[0])
    owner = load(environment.name, [name])[name]
    url = wanted.url or ""
    dump = importing.from_file(wanted.dump, target) if wanted.dump else importing.from_server(url, _password())
    return importing.database(target, service, owner, dump, again=wanted.again)


def _password() -> Secret | None:
    """Return the password of the source, if somebody is there to ask and nothing else has it."""
    elsewhere = os.environ.get("PGPASSWORD") or os.environ.get("PGPASSFILE") or (Path.home() / ".pgpass").exists()
    if elsewhere or not sys.stdin.isatty():
        return None
    return Secret("import.password", click.prompt("password of the source", hide_input=True))


def _volume(service: Service, wanted: str | None) -> str:
    names = ", ".join(service.volumes) or "none"
    if wanted is None and len(service.volumes) == 1:
        return next(iter(service.volumes))
    if wanted not in service.volumes:
        raise ConfigError(f"{service.name}: --volume must name one of its volumes: {names}", "nothing was imported")
    return str(wanted)


def _show(found: Iterable[importing.Compared], what: str) -> bool:
    """Print each comparison as it ends; return whether one failed."""
    failed = False
    for each in found:
        if each.problem:
            failed = True
            click.echo(f"{SIGNS['failed']} {each.name}: {each.problem}")
        elif each.gap:
            click.echo(f"{SIGNS['not-exercised']} {each.name}: {each.amount} {what}; NOT EXERCISED: {each.gap}")
        else:
            click.echo(f"{SIGNS['passed']} {each.name}: {each.amount} {what}, the same on both sides")
    return failed
