"""`minipc artifacts`: upstream files, their hashes and the offline set."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from minipc.artifacts import default_store, offline_set
from minipc.artifacts.catalogue import ARCHITECTURES, Pin
from minipc.artifacts.errors import UnobtainableError
from minipc.artifacts.store import Artifact, Store, own_arch
from minipc.core.errors import EXIT_COULD_NOT_VERIFY
from minipc.core.files import sha256_of
from minipc.core.formatting import count

_FILE = click.Path(dir_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
_HELP = "Architecture of the files."
_arch = click.option(
    "--arch", type=click.Choice(ARCHITECTURES), default=own_arch, show_default="this computer's", help=_HELP
)
_arches = click.option(
    "--arch",
    "arches",
    type=click.Choice([*ARCHITECTURES, "both"]),
    callback=lambda _context, _option, value: ARCHITECTURES if value == "both" else (value,),
    default=own_arch,
    show_default="this computer's",
    help=_HELP,
)


@click.group()
def artifacts() -> None:
    """Manage upstream files: pinned, verified and cached here, pushed to machines from here."""


@artifacts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_files(as_json: bool) -> None:
    """List every file with its pin, lock, cache state and origin, without computing hashes."""
    rows = default_store().status()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    table = [("NAME", "ARCH", "PINNED", "LOCKED", "CACHED", "ORIGIN")]
    for row in rows:
        origin = f"LOCAL {row.version}" if row.origin == "local" else row.origin
        table.append((row.name, row.arch, row.pinned_version, _yes(row.locked), _yes(row.cached), origin))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@artifacts.command()
@click.argument("names", nargs=-1)
@_arches
def fetch(names: tuple[str, ...], arches: tuple[str, ...]) -> None:
    """Download and verify the named files, or all files; resume interrupted downloads.

    A file without a locked hash is checked against its publisher's checksum file, and its hash is locked. If there is
    no such file, you are asked on a terminal. Exit code 4: some files could not be obtained.
    """
    store = default_store()
    pins = _pins(store, names, arches)
    if sys.stdin.isatty():
        accept_unlocked(store, pins)
    _report([store.resolve(pin.name, pin.arch) for pin in pins])


def accept_unlocked(store: Store, pins: Iterable[Pin]) -> None:
    """Download files whose publisher has no checksums, show their hashes, and lock those that a person accepts."""
    wanted = set(pins)
    for pin in [each for each in store.unlocked() if each in wanted]:
        try:
            file = store.download_once(pin)
        except UnobtainableError as error:
            click.echo(f"{pin}: {error.what}", err=True)
            continue
        click.echo(f"{pin.publisher}\n  {file.stat().st_size} bytes, sha256 {sha256_of(file)}")
        click.echo("  Its publisher has no checksums. If you can, compare the hash with another download.")
        if click.confirm("Lock this hash, so that only this file is used from now on?", default=True):
            store.accept(pin, file)
        else:
            file.unlink()


@artifacts.command()
@click.argument("names", nargs=-1)
@click.option("--sha256", help="Hash that you checked yourself; requires one NAME and one architecture.")
@_arches
def lock(names: tuple[str, ...], sha256: str | None, arches: tuple[str, ...]) -> None:
    """Lock the given hash, or the hashes in the publishers' checksum files.

    Only checksum files are downloaded. A locked hash is never replaced.
    """
    store = default_store()
    if sha256 is not None:
        if len(names) != 1 or len(arches) != 1:
            raise click.UsageError("--sha256 requires one NAME and one architecture")
        changed = store.lock_hash(names[0], arches[0], sha256.lower())
        click.echo(f"{names[0]} ({arches[0]}): {'locked' if changed else 'already locked'}")
        return
    not_locked = 0
    for pin in _pins(store, names, arches):
        if store.lock.find(pin):
            click.echo(f"{pin}: already locked")
            continue
        try:
            store.lock_published(pin)
            click.echo(f"{pin}: locked as stated by {pin.checksums}")
        except UnobtainableError as error:
            not_locked += 1
            click.echo(f"{pin}: NOT LOCKED: {error.what}", err=True)
    if not_locked:
        raise SystemExit(EXIT_COULD_NOT_VERIFY)


@artifacts.command()
@click.argument("name")
@click.argument("file", type=_EXISTING)
@click.option("--version", help="Version of the file; reports show it next to the pinned version.")
@_arch
def add(name: str, file: Path, version: str | None, arch: str) -> None:
    """Use FILE instead of the pinned file of NAME. Every report marks it as LOCAL."""
    click.echo(default_store().add(name, file, arch, version))


@artifacts.command()
@click.argument("name")
@_arch
def forget(name: str, arch: str) -> None:
    """Stop using the local file for NAME that `minipc artifacts add` set."""
    record = default_store().forget(name, arch)
    click.echo(f"{name} ({arch}): {f'no longer uses {record.version}' if record else 'has no local file'}")


@artifacts.command()
@click.argument("name")
@_arch
def path(name: str, arch: str) -> None:
    """Print the path of the verified file of NAME. Exit code 4: it is not in the cache."""
    found = default_store().resolve(name, arch, fetch=False)
    if found.path is None:
        raise UnobtainableError(f"{name} ({arch}): {found.why_missing}", f"run `minipc artifacts fetch {name}`")
    click.echo(found.path)


@artifacts.group("offline-set")
def offline_set_group() -> None:
    """Carry the cached files to a controller without a network."""


@offline_set_group.command()
@click.argument("file", type=_FILE)
@_arches
def create(file: Path, arches: tuple[str, ...]) -> None:
    """Write the cached files to the tar FILE. Exit code 4: some files are not in the cache, so not in FILE."""
    found = offline_set.create(default_store(), file, arches)
    click.echo(f"wrote {file}")
    _report(found)


@offline_set_group.command("import")
@click.argument("file", type=_EXISTING)
@click.option(
    "--trust-local", is_flag=True, help="Also import files that are not in artifacts.lock; reports mark them as LOCAL."
)
def import_(file: Path, trust_local: bool) -> None:
    """Verify all of FILE, then import it into the cache."""
    for line in offline_set.import_(default_store(), file, trust_local=trust_local):
        click.echo(line)


artifacts.add_command(
    click.Group("bundle", commands=offline_set_group.commands, hidden=True, help="Old name of `offline-set`.")
)


def _pins(store: Store, names: tuple[str, ...], arches: tuple[str, ...]) -> list[Pin]:
    known = names or [pin.name for pin in store.catalogue.pins]
    return list(dict.fromkeys(store.catalogue.find(name, arch) for name in known for arch in arches))


def _report(found: list[Artifact]) -> None:
    for artifact in found:
        click.echo(str(artifact))
    missing = [artifact for artifact in found if artifact.origin == "missing"]
    if missing:
        click.echo(f"{count(len(missing), 'file')} of {len(found)} cannot be obtained now", err=True)
        raise SystemExit(EXIT_COULD_NOT_VERIFY)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
