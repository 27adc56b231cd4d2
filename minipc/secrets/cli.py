"""`minipc secrets`: init, list, check, set, renew, copy. There is no command that shows a value."""

from __future__ import annotations

import sys

import click

from minipc.errors import ConfigError, SecretError
from minipc.secrets import catalogue
from minipc.secrets.backends import open_store
from minipc.secrets.catalogue import Entry
from minipc.secrets.copying import copy
from minipc.secrets.generate import fill
from minipc.secrets.generate import renew as replace
from minipc.secrets.secret import check_name
from minipc.secrets.settings import Backend
from minipc.secrets.store import SecretStore, nearest, resolve

_BACKENDS = click.Choice(["age", "vault"])
_environment = click.option(
    "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
)


@click.group()
def secrets() -> None:
    """The secrets of an environment: stored encrypted, never shown."""


@secrets.command()
@_environment
def init(environment: str) -> None:
    """Make the key, the file, and every value that can be generated. What is there stays."""
    entries, store = _open(environment)
    for made in store.prepare():
        click.echo(f"made {made}")
    filled = fill(store, entries)
    for name in filled.generated:
        click.echo(f"generated {name}")
    if filled.present:
        click.echo(f"{len(filled.present)} were there already")
    for entry in filled.to_supply:
        click.echo(f"{'optional' if entry.optional else 'REQUIRED'}, yours to set: {entry.name} ({entry.description})")


@secrets.command("list")
@_environment
def list_command(environment: str) -> None:
    """List names, and which are present or missing."""
    entries, store = _open(environment)
    present = set(store.names())
    click.echo(f"{store.backend}: {store.location}")
    width = max((len(name) for name in present | {entry.name for entry in entries}), default=0)
    for entry in entries:
        click.echo(f"  {entry.name:<{width}}  {_state(entry, present):<17}  {entry.description}")
    for name in sorted(present - {entry.name for entry in entries}):
        click.echo(f"  {name:<{width}}  {'present, unused':<17}  no component asks for it")


@secrets.command()
@_environment
def check(environment: str) -> None:
    """Read every required secret as a run would; fails when one is missing or unreadable."""
    entries, store = _open(environment)
    found = resolve(
        store,
        [entry.name for entry in entries if not entry.optional],
        [entry.name for entry in entries if entry.optional],
    )
    click.echo(f"{len(found)} secrets readable, none of the required ones missing; {store.backend}: {store.location}")


@secrets.command("set")
@click.argument("name", nargs=-1, metavar="NAME")
@_environment
def set_command(name: tuple[str, ...], environment: str) -> None:
    """Store one value, asked for or read from standard input."""
    if len(name) != 1:  # click's own message would repeat a value given by mistake
        raise click.UsageError(
            "exactly one NAME; the value is asked for or read from standard input, never an argument"
        )
    entries, store = _open(environment)
    wanted = check_name(name[0])
    known = {entry.name for entry in entries} | set(store.names())
    if wanted not in known:
        raise SecretError(
            f"no component asks for a secret {wanted}{nearest(wanted, known)}", "`minipc secrets list` shows all names"
        )
    store.set_many({wanted: _value(wanted)})
    click.echo(f"stored {wanted} in {store.backend} {store.location}")


@secrets.command()
@click.argument("names", nargs=-1, metavar="NAME…")
@click.option("--machine", is_flag=True, help="What the mini PC proves itself with off-site: locks the old one out.")
@_environment
def renew(names: tuple[str, ...], machine: bool, environment: str) -> None:
    """Replace generated values by new ones; the next converge puts them in place."""
    chosen = [*names, *(catalogue.GENERATION if machine else ())]
    if not chosen:
        raise click.UsageError("name the secrets to renew, or give --machine")
    replace(environment, chosen)
    for name in chosen:
        click.echo(f"renewed {name}")


@secrets.command("copy")
@click.option("--from", "source", type=_BACKENDS, required=True, help="Where the values are.")
@click.option("--to", "target", type=_BACKENDS, required=True, help="Where they go.")
@click.option("--overwrite", is_flag=True, help="Replace values that differ in the target.")
@_environment
def copy_command(source: Backend, target: Backend, overwrite: bool, environment: str) -> None:
    """Copy all secrets from one backend to the other and read them back."""
    if source == target:
        raise click.UsageError("--from and --to are the same")
    if environment == "lab":
        raise ConfigError("the lab's secrets stay in its own age file", "copy another environment's")
    copied = copy(open_store(environment, backend=source), open_store(environment, backend=target), overwrite=overwrite)
    for name in copied.written:
        click.echo(f"copied {name}")
    click.echo(f"{len(copied.written)} copied, {len(copied.same)} were the same")


def _open(environment: str) -> tuple[list[Entry], SecretStore]:
    store = open_store(environment)  # checks the environment's name first
    return catalogue.for_environment(environment), store


def _state(entry: Entry, present: set[str]) -> str:
    if entry.name in present:
        return "present"
    return "missing, optional" if entry.optional else "MISSING"


def _value(name: str) -> str:
    if _is_terminal():
        value: str = click.prompt(f"value of {name}", hide_input=True, confirmation_prompt=True)
        return value
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise SecretError(f"the value of {name} is not UTF-8 text; nothing was stored", "store binary values as base64")
    return text.removesuffix("\n").removesuffix("\r")


def _is_terminal() -> bool:
    return sys.stdin.isatty()
