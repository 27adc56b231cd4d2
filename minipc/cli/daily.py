"""Commands for every day: status, triage, plan, apply, verify, history, drift."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from minipc.cli.options import changes_the_machine, machine_options
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_CHANGES_PENDING

if TYPE_CHECKING:
    from minipc.evidence.records import Kind

RECORD_KINDS = ("rehearsal", "drill", "rebuild", "converge", "exposure", "faults")


@click.command()
@click.option("--direct", is_flag=True, help="Ask the machine itself instead of Prometheus.")
@click.option("--resources", is_flag=True, help="Show the memory of each unit, pod and container instead.")
@machine_options
def status(direct: bool, resources: bool, environment: Environment, alias: str | None) -> None:
    """Show the state of the machine and its services on one screen.

    Exit code 1: something is wrong. Exit code 4: something could not be checked.
    """
    from playbooks.status import resources as show_resources
    from playbooks.status import status as show

    if resources:
        sys.exit(show_resources(environment, alias))
    sys.exit(show(environment, alias, direct=direct))


@click.command()
@machine_options
def digest(environment: Environment, alias: str | None) -> None:
    """Print what is sent once a week: backups, drills, certificates, disk forecast, last rehearsal, active alerts."""
    from playbooks.digest import digest as show

    show(environment, alias)


@click.command()
@machine_options
def triage(environment: Environment, alias: str | None) -> None:
    """Find what is broken, from the public ingress to the data, and show the next command to run."""
    from playbooks.status import triage as find

    sys.exit(find(environment, alias))


@click.command()
@click.argument("names", nargs=-1, metavar="[COMPONENT]…")
@machine_options
def plan(names: tuple[str, ...], environment: Environment, alias: str | None) -> None:
    """Show what a converge would change; secrets are hidden. Exit code 2: changes are pending."""
    from minipc.config.components import deploy_files
    from minipc.pyinfra_ext import converge
    from minipc.remote.inventory import the_target

    target = the_target(environment, alias)
    pending, diff = converge.plan(environment, deploy_files(names, target.role), limit=target.alias)
    if diff:
        click.echo(diff)
    for change in pending:
        click.echo(f"would change  {change.component}: {change.name}")
    click.echo(f"{len(pending)} changes pending on {target.alias}")
    if pending:
        sys.exit(EXIT_CHANGES_PENDING)


@click.command()
@click.argument("names", nargs=-1, metavar="[COMPONENT]…")
@machine_options
@changes_the_machine
def apply(names: tuple[str, ...], environment: Environment, alias: str | None) -> None:
    """Converge everything, or the named components, then verify. Write a record and a report.

    It does not ask for confirmation (it runs pyinfra with -y). Run `minipc plan` first.
    """
    from playbooks.apply import apply as run

    sys.exit(run(environment, names, alias))


@click.command()
@machine_options
def unlock(environment: Environment, alias: str | None) -> None:
    """End the lock of an operator whose command hangs. A command that still runs there is not stopped by it."""
    from minipc.remote.inventory import the_target
    from minipc.remote.operator_lock import end

    target = the_target(environment, alias)
    who = end(target)
    click.echo(f"the lock of {target.alias} was ended; it was held by {who}" if who else "nobody held the lock")


@click.command()
@click.argument("names", nargs=-1, metavar="[COMPONENT]…")
@click.option(
    "--smoke",
    is_flag=True,
    help="Run only the smoke test: a short list of checks that shows whether the service is back.",
)
@machine_options
def verify(names: tuple[str, ...], smoke: bool, environment: Environment, alias: str | None) -> None:
    """Check from outside and inside that the machine works as configured."""
    from playbooks.apply import check

    sys.exit(check(environment, names, alias, smoke_only=smoke))


@click.command()
@machine_options
def drift(environment: Environment, alias: str | None) -> None:
    """Run `minipc plan` and publish the result as metrics. Meant for a nightly timer on this computer.

    Exit code 2: the machine differs from the configuration.
    """
    from playbooks.drift import drift as find

    sys.exit(find(environment, alias))


@click.command()
@click.argument("kind", type=click.Choice(RECORD_KINDS), required=False)
def history(kind: Kind | None) -> None:
    """List past runs, oldest first: verdict, time, RTO and RPO."""
    from minipc.evidence.display import console_for
    from minipc.evidence.history import show
    from minipc.evidence.run import RECORDS

    show(RECORDS, kind, console_for())
