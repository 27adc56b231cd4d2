"""Commands for backups and recovery: backup, drill, rebuild, runbook."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime

import click

from minipc.cli.options import bypass_the_vpn, changes_the_machine, environment_option, machine_options
from minipc.core.environment import Environment


@click.group()
def backup() -> None:
    """Take and remove backups. The mini PC also takes them by itself."""


@backup.command()
@machine_options
@changes_the_machine
def now(environment: Environment, alias: str | None) -> None:
    """Take a differential backup into each repository, and one of configuration and state."""
    from playbooks.backup import now as take

    sys.exit(take(environment, alias))


@backup.command()
@machine_options
def prune(environment: Environment, alias: str | None) -> None:
    """Remove old snapshots of configuration and state on the off-site host, in the bucket or in the storage box."""
    from playbooks.backup import prune as remove

    remove(environment, alias)


@backup.command()
@environment_option
def key(environment: Environment) -> None:
    """Print the mini PC's public key. Add it to the authorized keys of the storage box."""
    from minipc.secrets import open_store
    from playbooks.storage_box import authorized_key

    click.echo(authorized_key(open_store(environment.name)))


@backup.command("host-keys")
@click.argument("server", metavar="[HOST:PORT]", default="")
@environment_option
def host_keys(server: str, environment: Environment) -> None:
    """Print the host keys that a storage box shows, for `offsite_sftp`. Compare them with its provider's page."""
    from minipc_machine.storage_box import fingerprint
    from playbooks.storage_box import shown_host_keys

    found = shown_host_keys(environment, server)
    for each in found:
        click.echo(f"# {fingerprint(each)}")
    click.echo(f'"host_keys": {json.dumps(found, indent=4)}')


@click.command()
@click.option("--repo", type=int, help="1: on the machine, 2: off-site. Default: the one whose last drill is oldest.")
@click.option("--collect", "fetch", is_flag=True, help="Don't start a drill; fetch results of scheduled ones.")
@machine_options
def drill(repo: int | None, fetch: bool, environment: Environment, alias: str | None) -> None:
    """Restore a backup next to the live database, check it, and remove it."""
    from minipc.evidence.records import exit_code
    from playbooks import restore_drill

    if fetch:
        made = restore_drill.collect(environment, alias)
        for record in made:
            click.echo(f"{record.started:%Y-%m-%d %H:%M} UTC: {record.verdict}")
        click.echo(f"{len(made)} new; `minipc history drill` shows all")
        return
    sys.exit(exit_code(restore_drill.drill(environment, alias, repo)))


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """Return a moment in the past as epoch seconds."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value).timestamp()
    except ValueError:
        raise click.BadParameter("write it as 2026-11-30T14:05, or with a zone: 2026-11-30T13:05+00:00") from None
    if found > time.time():
        raise click.BadParameter("it is in the future")
    return found


@click.command()
@click.option(
    "--target", "alias", required=True, metavar="HOST", help="The machine in the inventory, on its new hardware."
)
@click.option("--fingerprint", required=True, help="SHA256:… of the new machine's SSH host key, read on its console.")
@click.option("--strict", is_flag=True, help="Exit 4 if anything was NOT EXERCISED.")
@environment_option
@click.option(
    "--replace-database",
    metavar="IDENTIFIER",
    default="",
    help="Move the machine's database, which has this system identifier, aside and restore the backup.",
)
@click.option(
    "--accept-missing-wal", is_flag=True, help="Accept that a WAL segment is lost: restore the state before it."
)
@click.option(
    "--at",
    metavar="TIME",
    callback=_moment,
    help="Return to this moment, such as 2026-11-30T14:05. In this computer's time zone, unless it says another.",
)
@click.option("--accept-old-data", is_flag=True, help="Accept data loss beyond the RPO.")
@click.option("--without-state", is_flag=True, help="Continue if certificates, past drills and queues are unreadable.")
@click.option("--until", metavar="PHASE", help="Stop after this phase of docs/runbook.md.")
def rebuild(
    alias: str,
    fingerprint: str,
    strict: bool,
    environment: Environment,
    replace_database: str,
    accept_missing_wal: bool,
    at: float | None,
    accept_old_data: bool,
    without_state: bool,
    until: str | None,
) -> None:
    """Rebuild a lost machine on a blank one, from the off-site copy alone. Verify and time it."""
    from minipc.remote.inventory import the_target
    from playbooks import phases
    from playbooks import rebuild as procedure

    bypass_the_vpn()  # a blank machine has no VPN, and a rebuild must not depend on one
    stop_after = phases.named(until) if until else None
    options = procedure.Options(
        strict, replace_database, accept_missing_wal, accept_old_data, at, without_state, stop_after
    )
    target = the_target(environment, alias)
    sys.exit(procedure.rebuild(environment, (target.alias, target.data), fingerprint, options))


@click.command()
@click.option(
    "--repositories", is_flag=True, help="On the rebuilt machine: new passphrases, repositories, certificates."
)
@machine_options
def stolen(repositories: bool, environment: Environment, alias: str | None) -> None:
    """Lock a stolen mini PC out, renew what it knew, and list what you must do elsewhere."""
    from playbooks import lost

    if repositories:
        changes_the_machine(lost.repositories)(environment=environment, alias=alias)
    else:
        lost.stolen(environment, alias)


@click.command("laptop-lost")
@click.argument("client", required=False)
@environment_option
def laptop_lost(client: str | None, environment: Environment) -> None:
    """Replace the age key and all secrets after a computer with them was lost. CLIENT: its VPN client."""
    from playbooks import lost

    lost.laptop_lost(environment, client)


@click.command()
@click.option("--write", is_flag=True, help="Write docs/runbook.md instead of printing it.")
def runbook(write: bool) -> None:
    """Render the runbook: the phases of a rebuild as commands, and one line for each past run."""
    from minipc.evidence.run import RECORDS
    from playbooks.runbook import FILE, rendered

    text = rendered(RECORDS)
    if not write:
        click.echo(text, nl=False)
        return
    FILE.write_text(text, encoding="utf-8")
    click.echo(f"wrote {FILE}")
