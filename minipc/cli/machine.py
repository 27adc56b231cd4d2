"""What a fault of the machine needs: `minipc disk`, `minipc cluster`."""

from __future__ import annotations

import sys

import click

from minipc.cli.options import machine_options
from minipc.core.environment import Environment
from minipc.remote.inventory import the_target
from minipc.remote.queries import on

PROGRAM = "/usr/local/lib/minipc/disk-space"
LIMIT_S = 900


@click.group()
def disk() -> None:
    """Gain disk space; unlock an encrypted disk. No WAL that waits, database, volume or queue is removed."""


@disk.command()
@machine_options
def release(environment: Environment, alias: str | None) -> None:
    """Release the reserve, so that the database can write again. It is created again when there is space."""
    click.echo(on(the_target(environment, alias), f"{PROGRAM} release"))


@disk.command()
@click.option("--yes", is_flag=True, help="Don't ask; what is removed is still shown.")
@machine_options
def gain(environment: Environment, alias: str | None, yes: bool) -> None:
    """Remove what is missed least, in a fixed order. Show first what is promised less afterwards."""
    target = the_target(environment, alias)
    click.echo(on(target, f"{PROGRAM} gain --dry-run", timeout_s=LIMIT_S))
    if yes or click.confirm("Remove this?", abort=True):
        click.echo(on(target, f"{PROGRAM} gain", timeout_s=LIMIT_S))


@disk.command()
@machine_options
def unlock(environment: Environment, alias: str | None) -> None:
    """Give the passphrase of the encrypted disk to a machine that waits for it at boot."""
    from playbooks import disk_encryption

    click.echo(disk_encryption.unlock(environment, alias))
    click.echo("it boots now; if its TPM should have unlocked it, then: minipc disk prepare")


@disk.command()
@machine_options
def prepare(environment: Environment, alias: str | None) -> None:
    """Prepare an encrypted disk: grow it to its full size, and have the TPM unlock it from now on."""
    from playbooks import disk_encryption

    disk_encryption.prepare(environment, alias)
    click.echo("done; the passphrase still unlocks it, too")


@click.group()
def cluster() -> None:
    """Make the cluster again. It holds no data: its content comes from the settings and the deploy repository."""


@cluster.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
@machine_options
def reset(environment: Environment, alias: str | None, yes: bool) -> None:
    """Move a corrupt datastore aside, and have the same services again. Users wait for about two minutes.

    The database, volumes, queues and secrets are not touched. The datastore is kept on the machine.
    """
    from playbooks.cluster_reset import reset as run

    if not yes:
        click.confirm("Remove everything in the cluster and release the approved services again?", abort=True)
    sys.exit(run(environment, alias))
