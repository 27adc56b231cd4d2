"""`minipc artifacts`: upstream files, their hashes and the offline bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from minipc.artifacts import bundle as bundles
from minipc.artifacts import default_store
from minipc.artifacts.catalogue import ARCHITECTURES, Item
from minipc.artifacts.download import Downloader
from minipc.artifacts.errors import UnobtainableError
from minipc.artifacts.store import Artifact, Store, own_arch
from minipc.errors import EXIT_COULD_NOT_VERIFY
from minipc.wording import count

_ARCH = click.Choice([*ARCHITECTURES, "both"])
_arch_option = click.option(
    "--arch", type=_ARCH, default=own_arch, show_default="this machine's", help="Architecture of the files."
)
_FILE = click.Path(dir_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def artifacts() -> None:
    """Upstream files: pinned, verified, cached here, pushed from here."""


@artifacts.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_files(as_json: bool) -> None:
    """Shows every file: pin, hash, cache and origin. Hashes nothing."""
    rows = _store().status()
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
@_arch_option
def fetch(names: tuple[str, ...], arch: str) -> None:
    """Fetches and verifies the named files, or all; resumes what was cut.

    A file without a locked hash is checked against its publisher's checksum file, and artifacts.lock is written.
    Exit code 4: some could not be had.
    """
    store = _store()
    _report([store.resolve(item.name, item.arch) for item in _items(store, names, arch)])


@artifacts.command()
@click.argument("names", nargs=-1)
@click.option("--sha256", help="The hash you vouch for; for one NAME and one architecture.")
@_arch_option
def lock(names: tuple[str, ...], sha256: str | None, arch: str) -> None:
    """Locks hashes: the one you give, or those in the publishers' checksum files.

    Nothing is downloaded but checksum files. A locked hash is never replaced.
    """
    store = _store()
    if sha256 is not None:
        if len(names) != 1 or arch == "both":
            raise click.UsageError("--sha256 is for one NAME and one architecture")
        changed = store.lock_hash(names[0], arch, sha256.lower())
        click.echo(f"{names[0]} ({arch}): {'locked' if changed else 'was locked already'}")
        return
    without = 0
    for item in _items(store, names, arch):
        if store.lock.find(item):
            click.echo(f"{item}: was locked already")
            continue
        try:
            store.lock_published(item)
            click.echo(f"{item}: locked, as {item.checksums} says")
        except UnobtainableError as error:
            without += 1
            click.echo(f"{item}: NOT LOCKED: {error.what}", err=True)
    if without:
        raise SystemExit(EXIT_COULD_NOT_VERIFY)


@artifacts.command()
@click.argument("name")
@click.argument("file", type=_EXISTING)
@click.option("--version", help="What it is; reports show it beside the pinned version.")
@_arch_option
def add(name: str, file: Path, version: str | None, arch: str) -> None:
    """Puts FILE in by hand for NAME. It is used instead of the pinned one, and every report says LOCAL."""
    _only_one(arch)
    click.echo(_store().add(name, file, arch, version))


@artifacts.command()
@click.argument("name")
@_arch_option
def forget(name: str, arch: str) -> None:
    """Stops using the file that was put in by hand for NAME."""
    _only_one(arch)
    record = _store().forget(name, arch)
    click.echo(f"{name} ({arch}): {f'no longer {record.version}' if record else 'nothing was put in by hand'}")


@artifacts.command()
@click.argument("name")
@_arch_option
def path(name: str, arch: str) -> None:
    """Prints where the verified file of NAME is. Exit code 4: not in the cache."""
    _only_one(arch)
    found = _store().resolve(name, arch, fetch=False)
    if found.path is None:
        raise UnobtainableError(f"{name} ({arch}): {found.why_missing}", f"`minipc artifacts fetch {name}`")
    click.echo(found.path)


@artifacts.group()
def bundle() -> None:
    """Cached files in one tar, for a controller without a network."""


@bundle.command()
@click.argument("file", type=_FILE)
@_arch_option
def create(file: Path, arch: str) -> None:
    """Writes what the cache holds to FILE. Exit code 4: something is not in the cache and so not in FILE."""
    found = bundles.create(_store(), file, _arches(arch))
    click.echo(f"wrote {file}")
    _report(found)


@bundle.command("import")
@click.argument("file", type=_EXISTING)
@click.option("--trust-local", is_flag=True, help="Take files that artifacts.lock doesn't vouch for, as LOCAL.")
def import_(file: Path, trust_local: bool) -> None:
    """Takes FILE into the cache after verifying all of it."""
    for line in bundles.import_bundle(_store(), file, trust_local=trust_local):
        click.echo(line)


def _store() -> Store:
    # One for the whole command: it remembers hosts that don't answer.
    downloader = Downloader()
    return default_store(lambda: downloader)


def _arches(arch: str) -> tuple[str, ...]:
    return ARCHITECTURES if arch == "both" else (arch,)


def _only_one(arch: str) -> None:
    if arch == "both":
        raise click.UsageError("a file is for one architecture: --arch amd64 or --arch arm64")


def _items(store: Store, names: tuple[str, ...], arch: str) -> list[Item]:
    known = names or [item.name for item in store.catalogue.items]
    return list(dict.fromkeys(store.catalogue.item(name, each) for name in known for each in _arches(arch)))


def _report(found: list[Artifact]) -> None:
    for artifact in found:
        click.echo(str(artifact))
    missing = [artifact for artifact in found if artifact.origin == "missing"]
    if missing:
        click.echo(f"{count(len(missing), 'file')} of {len(found)} can't be had now", err=True)
        raise SystemExit(EXIT_COULD_NOT_VERIFY)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
