"""`minipc secrets`: init, list, check, set, renew, passphrase, copy. No command shows a value."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minipc import config
from minipc.cli.options import environment_option
from minipc.config.secrets_settings import Backend
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError, SecretError
from minipc.core.formatting import count
from minipc.secrets import catalogue
from minipc.secrets.backends import open_store
from minipc.secrets.catalogue import Entry
from minipc.secrets.copying import copy
from minipc.secrets.generate import fill
from minipc.secrets.generate import renew as replace
from minipc.secrets.secret import Secret, check_name
from minipc.secrets.store import SecretStore, nearest, resolve
from minipc.secrets.values import check_value

_BACKENDS = click.Choice(["age", "vault"])


@click.group()
def secrets() -> None:
    """Manage the secrets of an environment: stored encrypted, never shown."""


@secrets.command()
@environment_option
def init(environment: Environment) -> None:
    """Create the key, the file and every value that can be generated. Existing values are kept."""
    entries, store = _open(environment)
    for made in store.prepare():
        click.echo(f"created {made}")
    filled = fill(store, entries)
    for name in filled.generated:
        click.echo(f"generated {name}")
    if filled.present:
        click.echo(f"{count(len(filled.present), 'secret')} already existed")
    for entry in filled.to_supply:
        click.echo(
            f"{'optional' if entry.optional else 'REQUIRED'}, set it yourself: {entry.name} ({entry.description})"
        )


@secrets.command("list")
@environment_option
def list_command(environment: Environment) -> None:
    """List the names of the secrets, and which are present or missing."""
    entries, store = _open(environment)
    present = set(store.names())
    click.echo(f"{store.backend}: {store.location}")
    width = max((len(name) for name in present | {entry.name for entry in entries}), default=0)
    for entry in entries:
        click.echo(f"  {entry.name:<{width}}  {_state(entry, present):<17}  {entry.description}")
    for name in sorted(present - {entry.name for entry in entries}):
        click.echo(f"  {name:<{width}}  {'present, unused':<17}  no component uses it")


@secrets.command()
@environment_option
def check(environment: Environment) -> None:
    """Read every secret as a run would. Exit code 1: one is missing, unreadable or not usable."""
    entries, store = _open(environment)
    found = resolve(
        store,
        [entry.name for entry in entries if not entry.optional],
        [entry.name for entry in entries if entry.optional],
    )
    for entry in entries:
        if entry.name in found:
            check_value(entry.name, found[entry.name].reveal(), entry.rule)
    click.echo(f"{len(found)} secrets readable, none of the required ones missing; {store.backend}: {store.location}")


@secrets.command("set")
@click.argument("name", nargs=-1, metavar="NAME")
@environment_option
def set_command(name: tuple[str, ...], environment: Environment) -> None:
    """Store one value. It is prompted for or read from standard input.

    A value that the programs cannot use is refused; docs/reference/secrets.md lists the rules.
    """
    if len(name) != 1:  # click's own message would repeat a value given by mistake
        raise click.UsageError(
            "give exactly one NAME; the value is prompted for or read from standard input, never an argument"
        )
    entries, store = _open(environment)
    wanted = check_name(name[0])
    rules = {entry.name: entry.rule for entry in entries}
    known = rules.keys() | set(store.names())
    if wanted not in known:
        raise SecretError(
            f"no component and no service uses a secret {wanted}{nearest(wanted, known)}",
            "`minipc secrets list` shows all names",
        )
    secret = Secret(wanted, _value(wanted))
    if wanted in rules:
        check_value(wanted, secret.reveal(), rules[wanted])
    store.set_many({wanted: secret.reveal()})
    click.echo(f"stored {wanted} in {store.backend} {store.location}")


@secrets.command()
@click.argument("names", nargs=-1, metavar="NAME…")
@click.option(
    "--machine",
    is_flag=True,
    help="Renew the mini PC's credentials for the off-site host; this locks out the old machine.",
)
@environment_option
def renew(names: tuple[str, ...], machine: bool, environment: Environment) -> None:
    """Replace generated values by new ones; the next converge installs them."""
    chosen = [*names, *(catalogue.generation(config.load(environment.name)) if machine else ())]
    if not chosen:
        raise click.UsageError("name the secrets to renew, or give --machine")
    replace(environment.name, chosen)
    for name in chosen:
        click.echo(f"renewed {name}")


@secrets.command("passphrase")
@click.option("--remove", is_flag=True, help="Store the age key without a passphrase again.")
@click.option(
    "--passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read the new passphrase from a file (0600).",
)
@click.option(
    "--passphrase-fd", "descriptor", type=int, metavar="N", help="Read the new passphrase from an open file descriptor."
)
@environment_option
def passphrase_command(
    remove: bool, passphrase_file: Path | None, descriptor: int | None, environment: Environment
) -> None:
    """Protect the age key with a passphrase, change it, or remove it.

    The passphrase is prompted for, or read from standard input, a file or a descriptor; it is never an argument. Each
    later run asks for it once. Without it, only the break-glass bundle opens the secrets.
    """
    from minipc.secrets.age import AgeStore
    from minipc.secrets.key_file import is_protected
    from minipc.secrets.passphrase import read_passphrase

    if remove and (passphrase_file or descriptor is not None):
        raise click.UsageError("--remove takes no new passphrase")
    store = AgeStore(environment.age_file, environment.age_key_file)
    had = is_protected(store.key_path)
    if remove and not had:
        click.echo(f"{store.key_path} has no passphrase")
        return
    if had:
        store.unlock()  # asks for the present passphrase first
    new = None if remove else read_passphrase(passphrase_file, descriptor, new=True, of="the age key")
    store.protect(new)
    if remove:
        click.echo(f"{store.key_path} has no passphrase any more: anyone who reads the file has every secret")
        return
    click.echo(f"{store.key_path} is protected by {'the new' if had else 'a'} passphrase")
    if not had:
        click.echo(
            "copies without a passphrase may exist: in backups of this computer, in snapshots, where you put your copy"
        )
    click.echo("if it is forgotten, a break-glass bundle opens the secrets: have one (`minipc bundle create FILE`)")


@click.command()
@environment_option
def audit(environment: Environment) -> None:
    """List all credentials: what each allows, where it is, when it was renewed, and which check tries it."""
    from playbooks.audit import audit as procedure

    procedure(environment)


@secrets.command("copy")
@click.option("--from", "source", type=_BACKENDS, required=True, help="Backend to read from.")
@click.option("--to", "target", type=_BACKENDS, required=True, help="Backend to write to.")
@click.option("--overwrite", is_flag=True, help="Replace different values in the target.")
@environment_option
def copy_command(source: Backend, target: Backend, overwrite: bool, environment: Environment) -> None:
    """Copy all secrets from one backend to the other, and read them back."""
    if source == target:
        raise click.UsageError("--from and --to are the same backend")
    if not environment.in_repository:
        raise ConfigError("the lab's secrets stay in a separate age file", "copy those of production")
    name = environment.name
    copied = copy(open_store(name, backend=source), open_store(name, backend=target), overwrite=overwrite)
    for secret in copied.written:
        click.echo(f"copied {secret}")
    click.echo(f"{len(copied.written)} copied, {len(copied.same)} already the same")


def _open(environment: Environment) -> tuple[list[Entry], SecretStore]:
    return catalogue.for_environment(environment.name), open_store(environment.name)


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
        text = None  # the exception contains the value
    if text is None:
        raise SecretError(f"the value of {name} is not UTF-8 text; nothing was stored", "store binary values as base64")
    return text.removesuffix("\n").removesuffix("\r")


def _is_terminal() -> bool:
    return sys.stdin.isatty()
