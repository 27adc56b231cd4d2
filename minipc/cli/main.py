"""Entry point of `minipc`. Each command is in the module that `COMMANDS` names, and is loaded when it is called.

Exit codes: 0 pass, 1 fail, 2 changes pending, 3 refused by a guard, 4 could not verify.
"""

from __future__ import annotations

import importlib
import sys

import click

from minipc.core.errors import EXIT_FAIL, MinipcError

# Heading -> command -> where it is and what `minipc --help` says: at most 45 characters, so that no line is cut.
# By name, because nothing here may import the rehearsal, and because `minipc --help` would take 1.4 s instead of
# 0.2 s if it loaded all commands (measured on two cores).
COMMANDS = {
    "Every day": {
        "status": ("minipc.cli.daily:status", "show on one screen whether all is well"),
        "triage": ("minipc.cli.daily:triage", "find what is broken and what to do next"),
        "digest": ("minipc.cli.daily:digest", "print the weekly summary"),
        "alert": ("minipc.cli.alert:alert", "test the channels of the alerts"),
        "plan": ("minipc.cli.daily:plan", "show what apply would change"),
        "apply": ("minipc.cli.daily:apply", "converge and verify without asking"),
        "unlock": ("minipc.cli.daily:unlock", "end the lock of another operator"),
        "verify": ("minipc.cli.daily:verify", "check that the machine works as configured"),
        "disk": ("minipc.cli.machine:disk", "gain disk space, unlock an encrypted disk"),
        "cluster": ("minipc.cli.machine:cluster", "make the cluster again, without touching data"),
        "logs": ("minipc.cli.logs:logs", "show logs of a request or a service"),
        "release": ("minipc.cli.release:release", "release a version of a service, roll back"),
        "trace": ("minipc.cli.release:trace", "show the commit that a pod runs"),
        "history": ("minipc.cli.daily:history", "list past runs: verdict, time, RTO, RPO"),
        "drift": ("minipc.cli.daily:drift", "plan, and publish the result as metrics"),
    },
    "Backups and recovery": {
        "rebuild": ("minipc.cli.recovery:rebuild", "rebuild a lost machine on a blank one"),
        "backup": ("minipc.cli.recovery:backup", "take backups now, remove old ones"),
        "drill": ("minipc.cli.recovery:drill", "restore a backup next to the live database"),
        "stolen": ("minipc.cli.recovery:stolen", "lock out a stolen machine, renew what it knew"),
        "laptop-lost": ("minipc.cli.recovery:laptop_lost", "replace all keys that a lost laptop had"),
        "bundle": ("minipc.cli.bundle:bundle", "seal what a rebuild needs into one file"),
        "dns": ("minipc.cli.dns:dns", "show and change the public DNS records"),
        "runbook": ("minipc.cli.recovery:runbook", "render the rebuild as commands to type"),
    },
    "Rehearsals": {
        "rehearse": ("rehearsal.cli:rehearse", "build, lose and rebuild a machine; RTO, RPO"),
        "prove": ("rehearsal.cli:prove", "prove who reaches which port, from each side"),
        "lab": ("rehearsal.lab.cli:lab", "create and remove disposable machines"),
        "test": ("rehearsal.cli:test", "run the project's own tests"),
    },
    "Setting up": {
        "init": ("minipc.cli.setup:init", "describe your machines: asks, looks, writes"),
        "up": ("minipc.cli.setup:up", "everything up to the first user request"),
        "doctor": ("minipc.cli.setup:doctor", "check what this computer needs"),
        "preflight": ("minipc.cli.setup:preflight", "check that a rebuild could get what it needs"),
        "config": ("minipc.cli.setup:config", "check the settings and print them"),
        "secrets": ("minipc.cli.secrets:secrets", "create, store, renew secrets; shows none"),
        "audit": ("minipc.cli.secrets:audit", "list credentials: rights, places, renewal"),
        "artifacts": ("minipc.cli.artifacts:artifacts", "fetch files that Debian does not package"),
        "image": ("minipc.cli.image:image", "build a disk image: Debian 13, no installer"),
        "adopt": ("minipc.cli.setup:adopt", "enrol a machine: pin host key and identity"),
        "service": ("minipc.cli.service:service", "describe services, build, check, import"),
        "vpn": ("minipc.cli.vpn:vpn", "add or revoke VPN clients"),
        "components": ("minipc.cli.setup:components", "list the components in converge order"),
        "argocd": ("minipc.cli.argocd:argocd", "set up and sync ArgoCD itself"),
    },
}
_WHERE = {name: where for commands in COMMANDS.values() for name, (where, _) in commands.items()}


class _LazyCommands(click.Group):
    """A group that loads the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_WHERE)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _WHERE:
            return None
        module, _, attribute = _WHERE[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from minipc.core.git import version_line

        click.echo(version_line())
        context.exit()


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show version and commit, and exit.",
)
def cli() -> None:
    """One command turns a blank machine into the same services again.

    The inventory `production` is inventory/production.py; `lab` is the machines that `minipc lab up` created.
    """


def main() -> None:
    """Run the command line. Expected errors become their message and exit code, never a traceback."""
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
