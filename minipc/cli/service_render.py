"""`minipc service render`: the files of the deploy repository that follow from the service files."""

from __future__ import annotations

from pathlib import Path

import click

from minipc.cli.options import target_options
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError
from minipc.core.files import write_atomic
from minipc.gitops import deploy_files
from minipc.gitops.hosted_repository import address_of
from minipc.remote.inventory import Target, offsite_target, the_target


@click.command(short_help="Write the manifests into the deploy repository.")
@click.argument("name", required=False)
@click.option(
    "--into",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Your clone of the deploy repository; without it the manifests are printed.",
)
@target_options
def render(environment: Environment, alias: str | None, name: str | None, directory: Path | None) -> None:
    """Write the manifests of NAME, or of all services, and the root application, from the service files.

    A file of a process or a service that no longer exists is removed. The version that runs is not touched. Commit what
    was written, signed, and push it; `minipc argocd sync` and `minipc release sync` show it before anything changes.
    """
    target = the_target(environment, alias)
    declared = target.settings.services.declared
    wanted = [target.settings.services.named(name)] if name else declared
    if directory is None:
        for each in wanted:
            for content in deploy_files.of_service(each, environment.name).values():
                click.echo(b"---\n" + content, nl=False)
        return
    files = deploy_files.of_root(
        declared, environment.name, _address(environment, target), target.settings.argocd.revision
    )
    for each in wanted:
        files |= deploy_files.of_service(each, environment.name)
        release = deploy_files.release_file(each.name, environment.name)
        if not (directory / release).exists():
            files[release] = deploy_files.release(each, None)
    there = [path.relative_to(directory).as_posix() for path in directory.rglob("*.yaml") if ".git" not in path.parts]
    generated = [each.name for each in wanted if each.manifests == "generated"]
    written = [path for path, content in files.items() if _write(directory / path, content)]
    removed = deploy_files.stale(there, files, generated, environment.name)
    for path in removed:
        (directory / path).unlink()
    for path in sorted([*(f"written  {path}" for path in written), *(f"removed  {path}" for path in removed)]):
        click.echo(path)
    if not written and not removed:
        click.echo("nothing to do: the files are what the service files say")


def _address(environment: Environment, target: Target) -> str:
    address = address_of(target, offsite_target(environment, target))
    if address is None:
        raise ConfigError(
            "there is no deploy repository: argocd_repository and backups_offsite are None",
            "docs/reference/argocd.md says how one is made",
        )
    return address


def _write(path: Path, content: bytes) -> bool:
    """Write a file if its content differs, and return whether it did."""
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content, mode=0o644)
    return True
