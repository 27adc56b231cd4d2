"""`minipc bundle`: create, open, check."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from minipc import paths
from minipc.bundle import creation, opening
from minipc.bundle.archive import created_text
from minipc.bundle.checking import Checked
from minipc.bundle.checking import check as look
from minipc.bundle.contents import now
from minipc.bundle.metrics import metrics
from minipc.bundle.passphrase import read_passphrase
from minipc.errors import EXIT_FAIL, MinipcError
from minipc.wording import count, duration
from playbooks import bundle_metrics

_FILE = click.Path(dir_okay=False, path_type=Path)
_Environment = Literal["production", "lab"]


def _passphrase_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--passphrase-fd", "descriptor", type=int, metavar="N", help="Read the passphrase from an open descriptor."
    )(command)
    return click.option("--passphrase-file", type=_FILE, help="Read the passphrase from a file (0600).")(command)


def _environment_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
    )(command)


@click.group()
def bundle() -> None:
    """The break-glass bundle: one sealed file with all a rebuild needs besides a clean clone.

    The passphrase is asked for, or read from standard input, a file or a descriptor; never an argument.
    """


@bundle.command()
@click.argument("file", type=_FILE)
@click.option("--replace", is_flag=True, help="FILE is an older bundle that may go.")
@_passphrase_options
@_environment_option
def create(
    file: Path, replace: bool, passphrase_file: Path | None, descriptor: int | None, environment: _Environment
) -> None:
    """Seal keys, secrets, inventory and pins into FILE. Keep it off this computer and off the machine."""
    creation.check_place(file, replace=replace)
    made = creation.create(environment, file, read_passphrase(passphrase_file, descriptor, new=True), replace=replace)
    secrets = [name for name in made.manifest.fingerprints.items if name.startswith("secret ")]
    for entry in made.manifest.entries:
        click.echo(f"sealed  {entry.path}")
    click.echo(f"{file}: {count(len(secrets), 'secret')}, {made.size / 1024:.0f} KB, opened again and compared")
    _show_gaps(made.manifest.gaps)
    try:
        _push(environment, look(environment))
    except MinipcError as error:  # the bundle is made, whatever monitoring knows of it
        click.echo(f"monitoring was not told: {error.what}", err=True)


@bundle.command("open")
@click.argument("file", type=_FILE)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), required=False)
@_passphrase_options
def open_command(file: Path, directory: Path | None, passphrase_file: Path | None, descriptor: int | None) -> None:
    """Put everything in FILE where a rebuild finds it: DIRECTORY (this clone unless told), home, settings."""
    passphrase = read_passphrase(passphrase_file, descriptor, new=False)
    opened = opening.open_bundle(file, passphrase, directory or paths.ROOT)
    manifest = opened.manifest
    for placed in opened.placed:
        click.echo(f"{placed.fate:7}  {placed.path}")
    click.echo(
        f"bundle of {manifest.environment}, made {created_text(manifest.created)}, "
        f"{duration((now() - manifest.created).total_seconds())} ago; {count(opened.secrets, 'secret')} readable"
    )
    if manifest.backend == "vault":
        click.echo("the secrets came from Vault and are in an age file now: secrets_backend says so")
    if manifest.origin.commit != opened.commit:
        where = manifest.origin.remote or "a repository without remote"
        click.echo(f"made at commit {manifest.origin.commit} of {where}; here is {opened.commit}", err=True)
    _show_gaps(manifest.gaps)
    click.echo(f"next: minipc secrets check --inventory {manifest.environment}")


@bundle.command()
@click.argument("file", type=_FILE, required=False)
@click.option("--open", "inside", is_flag=True, help="Ask for the passphrase and check the inside of the file.")
@click.option("--metrics", "metrics_file", metavar="FILE", help="Also write metrics (textfile collector); - prints.")
@click.option("--push", is_flag=True, help="Also have the metrics on the machine, for its monitoring.")
@_passphrase_options
@_environment_option
def check(
    file: Path | None,
    inside: bool,
    metrics_file: str | None,
    push: bool,
    passphrase_file: Path | None,
    descriptor: int | None,
    environment: _Environment,
) -> None:
    """Tell the age of the newest bundle, and whether it still matches. Exit 1: too old, or something changed."""
    passphrase = read_passphrase(passphrase_file, descriptor, new=False) if inside else None
    try:
        checked = look(environment, file, passphrase)
    except MinipcError:
        _write_metrics(metrics_file, environment, None)
        if push:
            _push(environment, None)
        raise
    _write_metrics(metrics_file, environment, checked)
    if push:
        _push(environment, checked)
    _show(checked, to_stderr=metrics_file == "-")
    if not checked.passed:
        sys.exit(EXIT_FAIL)


def _show(checked: Checked, *, to_stderr: bool) -> None:
    def say(text: str) -> None:
        click.echo(text, err=to_stderr)

    for line in [*checked.problems, *checked.changed]:
        say(line)
    for note in checked.notes:
        say(f"note: {note}")
    age = duration(checked.age.total_seconds())
    say(f"made {created_text(checked.created)}, {age} ago{': TOO OLD' if checked.too_old else ''}")
    if checked.passed:
        say("it still matches secrets, keys, inventory and pins")
    else:
        say("make a new one: minipc bundle create FILE")


def _write_metrics(file: str | None, environment: str, checked: Checked | None) -> None:
    if file is None:
        return
    text = metrics(environment, checked, now())
    if file == "-":
        click.echo(text, nl=False)
        return
    path = Path(file)
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)  # the collector runs as another user, and there is no secret in it
        temporary.replace(path)
    except OSError as error:
        raise MinipcError(f"{path} can't be written: {error.strerror}", "check the path and its owner") from None


def _push(environment: _Environment, checked: Checked | None) -> None:
    for line in bundle_metrics.push(environment, checked):
        click.echo(line, err=True)


def _show_gaps(gaps: list[str]) -> None:
    for gap in gaps:
        click.secho(f"NOT IN THE BUNDLE: {gap}", fg="yellow", err=True)
