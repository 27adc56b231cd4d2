"""Commands for rehearsals: rehearse, prove, test. `minipc/cli/main.py` loads them by name."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from minipc.cli.options import ENVIRONMENT, machine_options
from minipc.core.environment import LAB, Environment

if TYPE_CHECKING:
    from rehearsal.lab.backends import BackendName


@click.command()
@click.option(
    "--as",
    "group",
    type=ENVIRONMENT,
    default=LAB,
    show_default=True,
    help="Which settings to use; the secrets are generated.",
)
@click.option(
    "--backend",
    type=click.Choice(["nspawn", "qemu"]),
    default="nspawn",
    show_default=True,
    help="qemu: virtual machines; without KVM only a short rehearsal, without the loss.",
)
@click.option(
    "--offsite",
    type=click.Choice(["machine", "s3", "sftp"]),
    default="machine",
    show_default=True,
    help="What keeps the backups; s3: a bucket, sftp: a storage box. Both are without an off-site host, so the service "
    "runs under podman.",
)
@click.option("--zone", is_flag=True, help="Also test the DNS cutover, with a zone that the lab serves.")
@click.option("--offline", is_flag=True, help="Download no upstream file; what the cache lacks is NOT EXERCISED.")
@click.option("--keep", is_flag=True, help="Leave the machine up and show how to reach it.")
@click.option("--name", default="rehearsal", show_default=True, help="Name of the disposable machine.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "k3s", "podman", "stand-in"]),
    metavar="[auto|k3s|podman]",
    default="auto",
    show_default=True,
    help="What runs the service; auto: K3s if its artifacts are in the cache, else podman.",
)
@click.option("--strict", is_flag=True, help="Exit 4 if anything was NOT EXERCISED.")
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME", help="Rehearse a fault instead, or `all`; see --list-faults."
)
@click.option("--list-faults", is_flag=True, help="List the faults and what is expected of each.")
@click.option("--on", "host", metavar="HOST", help="Rehearse on this Debian machine over SSH; bring the report back.")
@click.pass_context
def rehearse(
    context: click.Context,
    group: Environment,
    backend: BackendName,
    offsite: Literal["machine", "s3", "sftp"],
    zone: bool,
    offline: bool,
    keep: bool,
    name: str,
    runtime: str,
    strict: bool,
    faults: tuple[str, ...],
    list_faults: bool,
    host: str | None,
) -> None:
    """Create a disposable machine, use it, destroy it, rebuild it from the off-site copy alone, and remove it.

    Verify and time everything: the RTO, from the loss until the service answers, and the RPO, the age of the newest
    write that was restored. Write a record and a report.
    """
    from minipc.artifacts.store import OFFLINE_VARIABLE
    from minipc.evidence.records import exit_code
    from playbooks.deploy_repository import runs_in_k3s
    from rehearsal.faults import FAULTS, rehearse_faults
    from rehearsal.machines import Options
    from rehearsal.rehearse import rehearse as run

    if host is not None:
        from rehearsal.on_host import rehearse_on

        sys.exit(rehearse_on(host, _given(context, without="host")))
    if list_faults:
        for fault in FAULTS:
            click.echo(f"{fault.name:24} {fault.expected:10} {fault.summary}")
        return
    if offline:
        os.environ[OFFLINE_VARIABLE] = "1"  # also for the rebuild, which is another process
    if offsite != "machine" and (faults or backend == "qemu" or runtime == "k3s"):
        raise click.UsageError(f"--offsite {offsite} works with nspawn and podman, and without --fault")
    # Faults are about data, and an emulated machine is too slow for K3s. Use systemd unless K3s is requested.
    k3s = runtime == "k3s" if faults or (backend, runtime) == ("qemu", "auto") else runs_in_k3s(runtime)
    k3s = k3s and offsite == "machine"
    options = Options(group=group, backend=backend, keep=keep, name=name, k3s=k3s, zone=zone, offsite=offsite)
    record = rehearse_faults(faults, options) if faults else run(options)[0]
    sys.exit(exit_code(record, strict=strict))


def _given(context: click.Context, *, without: str) -> list[str]:
    """Return the options that were given on the command line, as words of a command."""
    words = []
    for option in context.command.params:
        name = str(option.name)
        if name == without or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if value is True:
            words.append(option.opts[0])
        else:
            each = value if isinstance(value, tuple) else (value,)
            words += [word for one in each for word in (option.opts[0], str(getattr(one, "name", one)))]
    return words


@click.group()
def prove() -> None:
    """Run proofs on a lab machine. They change nothing and write a record."""


@prove.command()
@click.option("--short", is_flag=True, help="Skip the reboot.")
@machine_options
def exposure(short: bool, environment: Environment, alias: str | None) -> None:
    """Prove which ports each side reaches: scans, handshakes, canaries; also during a converge and after a reboot."""
    from minipc.evidence.records import exit_code
    from rehearsal.exposure import prove as run

    sys.exit(exit_code(run(environment, alias, whole=not short)))


# The name of the command before 0.2.
prove.add_command(
    click.Command("separation", callback=exposure.callback, params=exposure.params, help=exposure.help, hidden=True)
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--long", "long_", is_flag=True, help="Also run fault tables, emulation and large data; write a dated record."
)
@click.argument("pytest_args", nargs=-1)
def test(long_: bool, pytest_args: tuple[str, ...]) -> None:
    """Run the project's own tests and show what could not be exercised."""
    from rehearsal.selftest import run_tests

    sys.exit(run_tests(long_, pytest_args))
