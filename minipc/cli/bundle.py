"""`minipc bundle`: create, open, check."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from minipc.bundle import creation, opening
from minipc.bundle.archive import created_text
from minipc.bundle.checking import Checked
from minipc.bundle.checking import check as look
from minipc.bundle.contents import now
from minipc.bundle.metrics import metrics
from minipc.cli.options import environment_option
from minipc.core import paths
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, MinipcError
from minipc.core.files import write_atomic
from minipc.core.formatting import count, duration
from minipc.secrets.backends import age_key_file
from minipc.secrets.key_file import is_protected
from minipc.secrets.passphrase import read_passphrase
from playbooks import bundle_metrics

_FILE = click.Path(dir_okay=False, path_type=Path)


def _passphrase_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--passphrase-fd", "descriptor", type=int, metavar="N", help="Read the passphrase from an open file descriptor."
    )(command)
    return click.option("--passphrase-file", type=_FILE, help="Read the passphrase from a file (0600).")(command)


@click.group()
def bundle() -> None:
    """Manage the break-glass bundle: one encrypted file with everything that a rebuild needs in addition to this clone.

    The passphrase is prompted for, or read from standard input, a file or a descriptor; it is never an argument.
    """


@bundle.command()
@click.argument("file", type=_FILE)
@click.option("--replace", is_flag=True, help="Replace FILE if it is an older bundle.")
@_passphrase_options
@environment_option
def create(
    file: Path, replace: bool, passphrase_file: Path | None, descriptor: int | None, environment: Environment
) -> None:
    """Seal keys, secrets, inventory and pins into FILE. Keep FILE off this computer and off the machine."""
    creation.check_place(file, replace=replace)
    passphrase = read_passphrase(passphrase_file, descriptor, new=True)
    made = creation.create(environment.name, file, passphrase, replace=replace)
    secrets = [name for name in made.manifest.fingerprints.items if name.startswith("secret ")]
    for entry in made.manifest.entries:
        click.echo(f"sealed  {entry.path}")
    click.echo(f"{file}: {count(len(secrets), 'secret')}, {made.size / 1024:.0f} KB, opened again and compared")
    _show_gaps(made.manifest.gaps)
    try:
        _push(environment, look(environment.name))
    except MinipcError as error:  # the bundle exists, even if monitoring does not know
        click.echo(f"the metrics were not sent: {error.what}", err=True)


@bundle.command("open")
@click.argument("file", type=_FILE)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), required=False)
@_passphrase_options
def open_command(file: Path, directory: Path | None, passphrase_file: Path | None, descriptor: int | None) -> None:
    """Write the content of FILE to DIRECTORY (default: this clone), the home and the settings directory."""
    passphrase = read_passphrase(passphrase_file, descriptor, new=False)
    opened = opening.open_bundle(file, passphrase, directory or paths.ROOT)
    manifest = opened.manifest
    for placed in opened.placed:
        click.echo(f"{placed.fate:7}  {placed.path}")
    click.echo(
        f"bundle of {manifest.environment}, created {created_text(manifest.created)}, "
        f"{duration((now() - manifest.created).total_seconds())} ago; {count(opened.secrets, 'secret')} readable"
    )
    if manifest.backend == "vault":
        click.echo('the secrets came from Vault and are now in an age file; secrets_backend was set to "age"')
    if manifest.origin.commit != opened.commit:
        where = manifest.origin.remote or "a repository without a remote"
        click.echo(f"created at commit {manifest.origin.commit} of {where}; this clone is at {opened.commit}", err=True)
    _show_gaps(manifest.gaps)
    if not is_protected(age_key_file(manifest.environment)):
        click.echo("the age key has no passphrase here; `minipc secrets passphrase` gives it one")
    click.echo(f"next: minipc secrets check --inventory {manifest.environment}")


@bundle.command()
@click.argument("file", type=_FILE, required=False)
@click.option("--open", "inside", is_flag=True, help="Ask for the passphrase and check the content of the file.")
@click.option(
    "--metrics", "metrics_file", metavar="FILE", help="Also write metrics for the textfile collector; - prints them."
)
@click.option("--push", is_flag=True, help="Also send the metrics to the machine, for its monitoring.")
@_passphrase_options
@environment_option
def check(
    file: Path | None,
    inside: bool,
    metrics_file: str | None,
    push: bool,
    passphrase_file: Path | None,
    descriptor: int | None,
    environment: Environment,
) -> None:
    """Check the age of the newest bundle and whether it still matches.

    Exit code 1: it is too old, damaged, or something changed.
    """
    passphrase = read_passphrase(passphrase_file, descriptor, new=False) if inside else None
    try:
        checked = look(environment.name, file, passphrase)
    except MinipcError:
        _write_metrics(metrics_file, environment.name, None)
        if push:
            _push(environment, None)
        raise
    _write_metrics(metrics_file, environment.name, checked)
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
    say(f"created {created_text(checked.created)}, {age} ago{': TOO OLD' if checked.too_old else ''}")
    if checked.passed:
        say("it still matches secrets, keys, inventory and pins")
    else:
        say("create a new one: minipc bundle create FILE")


def _write_metrics(file: str | None, environment: str, checked: Checked | None) -> None:
    if file is None:
        return
    text = metrics(environment, checked, now())
    if file == "-":
        click.echo(text, nl=False)
        return
    path = Path(file)
    try:
        write_atomic(path, text.encode(), mode=0o644)  # the collector runs as another user; there is no secret in it
    except OSError as error:
        raise MinipcError(f"{path} cannot be written: {error.strerror}", "check the path and its owner") from None


def _push(environment: Environment, checked: Checked | None) -> None:
    for line in bundle_metrics.push(environment, checked):
        click.echo(line, err=True)


def _show_gaps(gaps: list[str]) -> None:
    for gap in gaps:
        click.secho(f"NOT IN THE BUNDLE: {gap}", fg="yellow", err=True)
