"""Commands for setting up: init, up, preflight, doctor, config, adopt, components."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minipc.cli.options import ENVIRONMENT, bypass_the_vpn, environment_option, target_options
from minipc.core.environment import PRODUCTION, Environment
from minipc.core.errors import EXIT_FAIL, EXIT_PASS

if TYPE_CHECKING:
    from playbooks.preflight import Moment

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
def components() -> None:
    """List the components in converge order."""
    from minipc.config.components import COMPONENTS

    for component in COMPONENTS:
        click.echo(f"{component.name:12} {component.summary}")


@click.command()
@click.option(
    "--answers",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with the answers, where there is no terminal.",
)
def init(file: Path | None) -> None:
    """Describe your machines: ask what cannot be found out, look at them, and write the files of production.

    At most ten questions, each with a default. Your public key is added to root's keys, and the account that the
    installer created is removed. Run it again at any time: your edits are kept, and the difference is shown.
    """
    from playbooks.init import init as begin
    from playbooks.init_questions import Questions, demand_answers, read_answers

    if file is None:
        demand_answers(sys.stdin.isatty())
    begin(Questions(read_answers(file) if file else None))


@click.command()
@click.option("--from", "begin_at", metavar="STEP", help="Begin with this step, although it may be done.")
@click.option("--bundle", type=_FILE, help="Where the break-glass bundle goes: a USB stick or another computer.")
@click.option("--passphrase-file", type=_FILE, help="Read the passphrase of the bundle from a file (0600).")
@target_options
def up(
    environment: Environment, alias: str | None, begin_at: str | None, bundle: Path | None, passphrase_file: Path | None
) -> None:
    """Do everything up to the first request of a user: download, adopt, converge, release, verify, back up.

    The steps that are done are kept: after an interruption or a failure, the same command continues.
    """
    from minipc.artifacts import default_store
    from minipc.bundle.creation import check_place
    from minipc.cli.artifacts import accept_unlocked
    from minipc.secrets.passphrase import read_passphrase
    from playbooks.up import up as run

    if sys.stdin.isatty():
        # Before the display begins, which would cover the question.
        store = default_store()
        accept_unlocked(store, store.catalogue.pins)
    passphrase = ""
    if bundle:
        check_place(bundle, replace=True)
        passphrase = read_passphrase(passphrase_file, None, new=True)
    sys.exit(run(environment, alias, begin_at=begin_at, bundle=bundle, passphrase=passphrase))


@click.command()
@click.argument("alias", metavar="HOST")
@click.option("--fingerprint", required=True, help="SHA256:… of its SSH host key, read on its console.")
@environment_option
def adopt(alias: str, fingerprint: str, environment: Environment) -> None:
    """Enrol a machine that is blank or was enrolled before: pin its host key and give it an identity."""
    from minipc.remote.inventory import the_target
    from playbooks.adopt import adopt as enrol

    bypass_the_vpn()  # a blank machine has no VPN
    target = the_target(environment, alias)
    pin = enrol(environment, (target.alias, target.data), fingerprint)
    click.echo(f"{alias} is enrolled as {pin.identity}")
    if environment.in_repository:
        click.echo("commit inventory/pins.json: it identifies the machine")


@click.command()
@click.argument("environment", type=ENVIRONMENT, default=PRODUCTION)
def config(environment: Environment) -> None:
    """Check the settings of an inventory, `production` by default, and print the settings of each machine."""
    from rich import print_json

    from minipc.remote.inventory import targets

    found = targets(environment)
    for target in found:
        print_json(target.settings.model_dump_json())
    click.echo(f"{environment}: the configuration is valid; {len(found)} machine(s)")


@click.command()
@click.option("--install", is_flag=True, help="Install missing packages with apt (needs root).")
def doctor(install: bool) -> None:
    """Check that this computer has everything that minipc needs."""
    from playbooks.doctor import examine

    def check_lab() -> None:
        # Imported by name, because this layer must not import `rehearsal`.
        importlib.import_module("rehearsal.lab.prerequisites").ensure_prerequisites(install=install)

    sys.exit(examine(check_lab))


@click.command()
@click.option(
    "--for",
    "moment",
    type=click.Choice(["first", "rebuild", "daily"]),
    default="daily",
    show_default=True,
    help="first: a new machine. rebuild: the name still points to the lost machine.",
)
@click.option("--push", is_flag=True, help="Also send the result to the machine, for its monitoring.")
@target_options
def preflight(environment: Environment, alias: str | None, push: bool, moment: Moment) -> None:
    """Check that everything that a rebuild needs is available: upstream files, images, public names, port 80.

    Exit code 1: something is not available. `minipc up` and `minipc rebuild` call it, and `minipc drift` each night.
    """
    from minipc.remote.inventory import the_target
    from playbooks import preflight as procedure

    target = the_target(environment, alias)
    findings = procedure.preflight(target, moment)
    for finding in findings:
        click.echo(str(finding))
    if push:
        procedure.publish(target, findings)
    sys.exit(EXIT_FAIL if any(finding.trouble for finding in findings) else EXIT_PASS)
