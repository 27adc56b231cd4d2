"""`minipc workload`: the reference workload's image."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from minipc.errors import CouldNotVerifyError


@click.group()
def workload() -> None:
    """The reference workload."""


@workload.command()
@click.option("--fresh", is_flag=True, help="Build the packages' layer anew, for Debian's security updates.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the archive here, for another machine.",
)
def image(fresh: bool, output: Path | None) -> None:
    """Build the image of the code as it is now into the artifact cache; say its name and digest. Needs root."""
    from minipc.workload import image as images
    from minipc.workload import oci

    found = images.ensure(fresh=fresh)
    if found.path is None:
        raise CouldNotVerifyError(f"the image is not in the cache: {found.why_missing}", "run the same command again")
    described = oci.read(found.path)
    if output:
        shutil.copyfile(found.path, output)
    click.echo(f"{described.reference}\n{described.digest}\n{output or found.path}")
