"""The command line. Thin: each command calls one function of a room or playbook; its outcome is the exit code.

0 pass, 1 fail, 2 changes pending, 3 refused by a guard, 4 could not verify.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from minipc.errors import EXIT_CHANGES_PENDING, EXIT_FAIL, MinipcError
from minipc.variables import BREAK_GLASS_VARIABLE

_LAZY = {
    "lab": "minipc.lab.cli:lab",
    "image": "minipc.lab.image_cli:image",
    "artifacts": "minipc.artifacts.cli:artifacts",
    "bundle": "minipc.bundle.cli:bundle",
    "secrets": "minipc.secrets.cli:secrets",
    "vpn": "minipc.vpn.cli:vpn",
    "dns": "minipc.dns.cli:dns",
    "logs": "minipc.logs.cli:logs",
    "release": "minipc.gitops.cli:release",
    "trace": "minipc.gitops.cli:trace",
    "argocd": "minipc.argocd.cli:argocd",
    "workload": "minipc.workload.cli:workload",
}

# What `minipc --help` shows: every command once, at most 45 characters, so that no line is cut.
_OVERVIEW = {
    "Every day": {
        "status": "is all well? answered on one screen",
        "triage": "where is it broken, and what to do next",
        "plan": "what a converge would change",
        "apply": "converge, verify, record; does not ask",
        "verify": "does the machine do what it should?",
        "logs": "what was logged, of one request or service",
        "release": "bring a version of the service up, go back",
        "trace": "from a pod to its commit",
        "history": "past runs: verdict, time, RTO, RPO",
        "drift": "plan, and tell monitoring",
    },
    "Backups and recovery": {
        "rebuild": "the lost machine again, on a blank one",
        "backup": "take backups now, remove old ones",
        "drill": "restore a backup beside the living database",
        "bundle": "what a rebuild needs, sealed, off the box",
        "dns": "which machine the public name leads to",
        "runbook": "the rebuild as commands, and past rehearsals",
    },
    "Rehearsals": {
        "rehearse": "build, lose and rebuild a machine; RTO, RPO",
        "prove": "who reaches what, from each side",
        "lab": "disposable machines",
        "test": "the project's own tests",
    },
    "Setting up": {
        "doctor": "what this controller lacks",
        "config": "check the settings and print them",
        "secrets": "make, set, renew secrets; never shows one",
        "artifacts": "files that Debian does not package",
        "image": "a disk image: Debian 13 without an installer",
        "adopt": "enrol a machine: pin host key and identity",
        "vpn": "let a device in, take it off the list",
        "components": "the components, in converge order",
        "argocd": "ArgoCD's part of the deploy repository",
        "workload": "the reference service's image",
    },
}


class _Rooms(click.Group):
    """Loads a room's commands only when they are asked for: `minipc plan` needs no lab."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in _OVERVIEW.items():
            with formatter.section(heading):
                formatter.write_dl(list(commands.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LAZY:
            module, _, attribute = _LAZY[cmd_name].partition(":")
            command: click.Command = getattr(__import__(module, fromlist=[attribute]), attribute)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Rooms, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minipc")
def cli() -> None:
    """One command turns a blank machine into the same service again.

    The inventory `production` is inventory/production.py; `lab` is whatever `minipc lab up` made.
    """


def _break_the_glass(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        os.environ[BREAK_GLASS_VARIABLE] = "1"


def _environment_option(command: Any) -> Any:
    command = click.option(
        "--break-glass",
        is_flag=True,
        expose_value=False,
        callback=_break_the_glass,
        help="Reach the machine beside its VPN, at its lan_address (docs/howto/vpn.md).",
    )(command)
    command = click.option("--host", "alias", help="Which machine, when the inventory has several.")(command)
    return click.option(
        "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
    )(command)


@cli.command()
def components() -> None:
    """List the components, in converge order."""
    from minipc.components import COMPONENTS

    for component in COMPONENTS:
        click.echo(f"{component.name:12} {component.summary}")


@cli.command()
@click.argument("names", nargs=-1, metavar="[COMPONENT]…")
@_environment_option
def plan(names: tuple[str, ...], environment: Any, alias: str | None) -> None:
    """Show what a converge would change, secrets hidden. Exits 2 when there is anything."""
    from minipc.components import deploy_files
    from minipc.converge import plan as look
    from minipc.inventory import the_target

    target = the_target(environment, alias)
    files = deploy_files(names, target.role)
    pending, diff = look(environment, files, limit=target.alias)
    if diff:
        click.echo(diff)
    for change in pending:
        click.echo(f"would change  {change.component}: {change.name}")
    click.echo(f"{len(pending)} changes pending on {target.alias}")
    if pending:
        sys.exit(EXIT_CHANGES_PENDING)


@cli.command()
@click.argument("names", nargs=-1, metavar="[COMPONENT]…")
@_environment_option
def apply(names: tuple[str, ...], environment: Any, alias: str | None) -> None:
    """Converge everything, or the named components, then verify: with timing, a record and a report.

    The pyinfra command is the one in README, with -y: it does not ask. Look first with `minipc plan`.
    """
    from playbooks.apply import apply as run

    sys.exit(run(environment, names, alias))


@cli.command()
@click.argument("names", nargs=-1, metavar="[COMPONENT]…")
@click.option("--smoke", is_flag=True, help="Only the short list that tells whether the service is back.")
@_environment_option
def verify(names: tuple[str, ...], smoke: bool, environment: Any, alias: str | None) -> None:
    """Check that the machine does what it should, from outside and inside."""
    from playbooks.apply import check

    sys.exit(check(environment, names, alias, smoke_only=smoke))


@cli.command()
@click.option(
    "--as",
    "group",
    type=click.Choice(["lab", "production"]),
    default="lab",
    show_default=True,
    help="Whose group_data to try, with generated secrets.",
)
@click.option(
    "--backend",
    type=click.Choice(["nspawn", "qemu"]),
    default="nspawn",
    show_default=True,
    help="qemu: with a kernel of its own; a short rehearsal, without the loss, where it must be emulated.",
)
@click.option("--zone", is_flag=True, help="Also cut over DNS, in a public zone of the lab's own.")
@click.option("--keep", is_flag=True, help="Leave the machine up and say how to reach it.")
@click.option("--name", default="rehearsal", show_default=True, help="Name of the disposable machine.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "k3s", "stand-in"]),
    default="auto",
    show_default=True,
    help="Where the service runs; auto: in K3s where its artifacts are in the cache, else a stand-in under systemd.",
)
@click.option("--strict", is_flag=True, help="Exit 4 when anything was NOT EXERCISED.")
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME", help="Play a fault instead, or `all`; see --list-faults."
)
@click.option("--list-faults", is_flag=True, help="List the faults, and what is expected of each.")
def rehearse(
    group: Any,
    backend: Any,
    zone: bool,
    keep: bool,
    name: str,
    runtime: str,
    strict: bool,
    faults: tuple[str, ...],
    list_faults: bool,
) -> None:
    """Build a disposable machine, use it, lose it, and rebuild it from the off-site copy alone; then throw it away.

    Everything is verified and timed: RTO, from the loss until the service answers, and RPO, how far back the last write
    is that came back. Leaves a record and a report.
    """
    from minipc.records import exit_code
    from playbooks.faults import FAULTS, rehearse_faults
    from playbooks.gitops import runs_in_k3s
    from playbooks.rehearse import Options
    from playbooks.rehearse import rehearse as run

    if list_faults:
        for fault in FAULTS:
            click.echo(f"{fault.name:24} {'goes red' if fault.reason else 'survived':10} {fault.summary}")
        return
    # Faults are about data, an emulated machine is too slow: the stand-in will do unless somebody asks for K3s.
    k3s = runtime == "k3s" if faults or (backend, runtime) == ("qemu", "auto") else runs_in_k3s(runtime)
    options = Options(group=group, backend=backend, keep=keep, name=name, k3s=k3s, zone=zone)
    record = rehearse_faults(faults, options) if faults else run(options)[0]
    sys.exit(exit_code(record, strict=strict))


@cli.command()
@click.option("--direct", is_flag=True, help="Ask the machine itself, not Prometheus.")
@_environment_option
def status(direct: bool, environment: Any, alias: str | None) -> None:
    """Answer the operator's questions on one screen. Exits 1 when an answer is no, 4 when one is missing."""
    from playbooks.status import status as look

    sys.exit(look(environment, alias, direct=direct))


@cli.command()
@_environment_option
def triage(environment: Any, alias: str | None) -> None:
    """Find where it is broken: from the public door to the data, with evidence and the next command."""
    from playbooks.status import triage as look

    sys.exit(look(environment, alias))


@cli.command()
@_environment_option
def drift(environment: Any, alias: str | None) -> None:
    """Plan, and let monitoring know; for a nightly timer on the controller. Exits 2 when the machine drifted."""
    from playbooks.drift import drift as look

    sys.exit(look(environment, alias))


@cli.group()
def backup() -> None:
    """Backups of the mini PC; it takes them by itself, too."""


@backup.command()
@_environment_option
def now(environment: Any, alias: str | None) -> None:
    """Take a differential backup into every repository, and one of configuration and state."""
    from playbooks.backup import now as take

    sys.exit(take(environment, alias))


@backup.command()
@_environment_option
def prune(environment: Any, alias: str | None) -> None:
    """Remove old snapshots of configuration and state, on the off-site machine: the mini PC itself can't."""
    from playbooks.backup import prune as remove

    remove(environment, alias)


@cli.command()
@click.option("--repo", type=int, help="1: on the machine, 2: off-site; else the one that was tried longest ago.")
@click.option("--collect", "fetch", is_flag=True, help="No new one: records of those that the machine did by itself.")
@_environment_option
def drill(repo: int | None, fetch: bool, environment: Any, alias: str | None) -> None:
    """Restore a backup beside the live database, question it, and throw it away."""
    from minipc.records import exit_code
    from playbooks.restore_drill import collect
    from playbooks.restore_drill import drill as run

    if fetch:
        made = collect(environment, alias)
        for record in made:
            click.echo(f"{record.started:%Y-%m-%d %H:%M} UTC: {record.verdict}")
        click.echo(f"{len(made)} new; `minipc history drill` shows all")
        return
    sys.exit(exit_code(run(environment, alias, repo)))


@cli.command()
@click.option(
    "--target", "alias", required=True, metavar="HOST", help="The machine in the inventory, on its new hardware."
)
@click.option(
    "--fingerprint", required=True, help="SHA256:… of the new machine's SSH host key, read on its own screen."
)
@click.option("--strict", is_flag=True, help="Exit 4 when anything was NOT EXERCISED.")
@click.option(
    "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
)
@click.option(
    "--replace-database",
    metavar="IDENTIFIER",
    default="",
    help="The machine has a database, with this system identifier: move it aside and restore the backup.",
)
@click.option("--accept-missing-wal", is_flag=True, help="A WAL segment is lost: come back to the state before it.")
@click.option("--accept-old-data", is_flag=True, help="More than the RPO's budget may be lost: that is all there was.")
@click.option("--until", metavar="PHASE", help="Stop after this phase of docs/runbook.md.")
def rebuild(
    alias: str,
    fingerprint: str,
    strict: bool,
    environment: Any,
    replace_database: str,
    accept_missing_wal: bool,
    accept_old_data: bool,
    until: str | None,
) -> None:
    """A lost machine comes back on a blank one, from the off-site copy alone; verified and timed."""
    from minipc.inventory import the_target
    from playbooks.phases import named
    from playbooks.rebuild import Options
    from playbooks.rebuild import rebuild as run

    os.environ[BREAK_GLASS_VARIABLE] = "1"  # a blank machine has no VPN, and the way back doesn't depend on one
    stop_after = named(until) if until else None
    options = Options(strict, replace_database, accept_missing_wal, accept_old_data, stop_after)
    target = the_target(environment, alias)
    sys.exit(run(environment, (target.alias, target.data), fingerprint, options))


@cli.group()
def prove() -> None:
    """Proofs that change nothing but leave a record."""


@prove.command()
@click.option("--short", is_flag=True, help="Without the reboot.")
@_environment_option
def separation(short: bool, environment: Any, alias: str | None) -> None:
    """Who reaches what, from each side: scans, handshakes, canaries; also during a converge and after a reboot."""
    from minipc.records import exit_code
    from playbooks.separation import prove as run

    sys.exit(exit_code(run(environment, alias, whole=not short)))


@cli.command()
@click.argument("alias", metavar="HOST")
@click.option("--fingerprint", required=True, help="SHA256:… of its SSH host key, read on its own screen.")
@click.option(
    "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
)
def adopt(alias: str, fingerprint: str, environment: Any) -> None:
    """Enrol a machine that is blank or already ours: pin its host key and give it an identity."""
    from minipc.inventory import the_target
    from minipc.lab.inventory import pin_lab_machine
    from minipc.pins import write_pin
    from playbooks.adopt import adopt as enrol

    os.environ[BREAK_GLASS_VARIABLE] = "1"  # a blank machine has no VPN
    target = the_target(environment, alias)
    pin = enrol((target.alias, target.data), fingerprint, pin_lab_machine if environment == "lab" else write_pin)
    click.echo(f"{alias} is enrolled as {pin.identity}")
    if environment == "production":
        click.echo("commit inventory/pins.json: it says which machine is meant")


@cli.command()
@click.argument("group", type=click.Choice(["lab", "production"]), default="production")
def config(group: Any) -> None:
    """Check the configuration of a group, `production` unless told, and print it: all settings of each machine."""
    from rich import print_json

    from minipc.inventory import targets

    found = targets(group)
    for target in found:
        print_json(target.settings.model_dump_json())
    click.echo(f"{group}: the configuration is valid; {len(found)} machine(s)")


@cli.command()
@click.argument(
    "kind", type=click.Choice(["rehearsal", "drill", "rebuild", "converge", "separation", "faults"]), required=False
)
def history(kind: Any) -> None:
    """Show past runs, oldest first: verdict, time, RTO and RPO."""
    from minipc.display import console_for
    from minipc.history import show
    from minipc.run import RECORDS

    show(RECORDS, kind, console_for())


@cli.command()
@click.option("--write", is_flag=True, help="Into docs/runbook.md, instead of printing it.")
def runbook(write: bool) -> None:
    """Render the runbook: the rebuild's phases as commands, and a line for each rehearsal, rebuild and drill."""
    from minipc.run import RECORDS
    from playbooks.runbook import FILE, rendered

    text = rendered(RECORDS)
    if not write:
        click.echo(text, nl=False)
        return
    FILE.write_text(text, encoding="utf-8")
    click.echo(f"wrote {FILE}")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--long", "long_", is_flag=True, help="Fault tables, emulation, large data; stores a dated record.")
@click.argument("pytest_args", nargs=-1)
def test(long_: bool, pytest_args: tuple[str, ...]) -> None:
    """Run the project's own tests and say what could not be exercised."""
    from minipc.selftest import run_tests

    sys.exit(run_tests(long_, pytest_args))


@cli.command()
@click.option("--install", is_flag=True, help="Install what is missing with apt (root).")
def doctor(install: bool) -> None:
    """Check everything this controller needs, before anything changes."""
    from minipc.doctor import examine

    sys.exit(examine(install))


def main() -> None:
    """Entry point: expected errors become their message and exit code, never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_FAIL)  # click's own 2 means "changes pending" here
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: run the same command again", err=True)
        sys.exit(130)
    except MinipcError as error:
        click.secho(f"minipc: {error}", err=True, fg="red")
        sys.exit(error.exit_code or EXIT_FAIL)


if __name__ == "__main__":
    main()
