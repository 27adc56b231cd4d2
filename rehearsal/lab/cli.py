"""Commands of `minipc lab`. Machines that it creates stay until `minipc lab down`."""

from __future__ import annotations

import os
import time

import click

from minipc.core.errors import ConfigError
from rehearsal import lab as library
from rehearsal.lab.backends import BackendName
from rehearsal.lab.inventory import is_offsite
from rehearsal.lab.lifecycle import DEFAULT_DISK_GB


@click.group()
def lab() -> None:
    """Create, use and remove disposable Debian 13 machines."""


@lab.command()
@click.argument("name", default="mini")
@click.option(
    "--disk-gb",
    default=DEFAULT_DISK_GB,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Size of the disk in GiB.",
)
@click.option("--memory-mb", type=click.IntRange(128), help="Memory limit in MiB; default: no limit.")
@click.option("--k3s", is_flag=True, help="Give the machine the privileges that K3s needs.")
@click.option(
    "--backend", type=click.Choice(["nspawn", "qemu"]), default="nspawn", show_default=True, help="Container or VM."
)
def up(name: str, disk_gb: int, memory_mb: int | None, k3s: bool, backend: BackendName) -> None:
    """Create a blank machine and print how to reach it."""
    started = time.monotonic()
    podman = not k3s and not is_offsite(name)
    machine = library.up(name, disk_gb=disk_gb, memory_mb=memory_mb, k3s=k3s, podman=podman, keep=True, backend=backend)
    click.echo(f"{name} is up after {time.monotonic() - started:.1f} s")
    click.echo(f"  public side    {machine.public_ipv4}  {machine.public_ipv6}")
    click.echo(f"  operator side  {machine.operator_ipv4}  {machine.operator_ipv6}")
    click.echo(f"  host key       {machine.host_key_fingerprint}")
    click.echo(f"  shell          minipc lab ssh {name}   or   ssh -F {library.ssh_config_path()} {name}")
    click.echo("  as a client    ip netns exec public curl …   or   ip netns exec operator …")
    click.echo(f"  remove         minipc lab down {name}")


@lab.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all machines, and what crashes left behind.")
def down(names: tuple[str, ...], everything: bool) -> None:
    """Remove machines."""
    if everything == bool(names):
        raise click.UsageError("name the machines, or use --all")
    removed = library.down("all" if everything else names)
    for name in removed:
        click.echo(f"{name} removed")
    for name in sorted(set(names) - set(removed)):
        click.echo(f"{name}: there is no such machine")


@lab.command()
@click.argument("name")
def start(name: str) -> None:
    """Start a machine that is powered off, from its disk."""
    library.start(_existing(name))
    click.echo(f"{name} is up")


@lab.command(name="list")
def list_() -> None:
    """List machines with their state and addresses."""
    for machine in library.list_machines():
        state = "running" if machine.running else "off"
        owner = "kept" if machine.owner is None else f"owner {machine.owner.pid}"
        click.echo(f"{machine.name:20} {state:8} {machine.public_ipv4:15} {machine.operator_ipv4:15} {owner}")


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, command: tuple[str, ...]) -> None:
    """Open a root shell on a machine, or run the command after `--`."""
    argv = library.ssh_command(_existing(name), *command)
    os.execvp(argv[0], argv)  # noqa: S606 - the shell takes over the terminal


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def console(name: str, command: tuple[str, ...]) -> None:
    """Open a root shell on the machine's console, which needs no network."""
    argv = library.console_command(_existing(name), *command)
    os.execvp(argv[0], argv)  # noqa: S606 - the shell takes over the terminal


def _existing(name: str) -> library.Machine:
    machine = library.find(name)
    if machine is None:
        raise ConfigError(f"there is no machine named {name!r}", "list them with `minipc lab list`")
    return machine
