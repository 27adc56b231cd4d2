"""`minipc argocd`: what the deploy repository needs for ArgoCD to manage itself, and the sync of it."""

from __future__ import annotations

import sys

import click

from minipc.cli.options import changes_the_machine, environment_option, target_options
from minipc.cli.release import repository_option, the_context
from minipc.core.environment import Environment
from minipc.core.errors import CouldNotVerifyError
from minipc.remote.inventory import the_target


@click.group()
def argocd() -> None:
    """Set up and sync ArgoCD itself: its manifest, its key for the deploy repository, its root application."""


@argocd.command()
def manifest() -> None:
    """Print the manifest of the pinned version, for argocd/install.yaml in the deploy repository."""
    from minipc.artifacts import own_arch, resolve
    from minipc.gitops.argocd_manifest import render

    found = resolve("argocd-manifest", own_arch())
    if found.path is None:
        raise CouldNotVerifyError(
            f"argocd-manifest: {found.why_missing}", "run `minipc artifacts fetch argocd-manifest`"
        )
    click.echo(render(found.path).decode(), nl=False)


@argocd.command()
@environment_option
def key(environment: Environment) -> None:
    """Print the public key of ArgoCD. Add it to the deploy repository as a read-only deploy key."""
    from minipc.secrets import open_store
    from minipc.secrets.catalogue import ARGOCD_DEPLOY_KEY
    from minipc.secrets.ed25519 import public_key

    click.echo(public_key(open_store(environment.name).get(ARGOCD_DEPLOY_KEY)))


@argocd.command()
@click.option("--yes", is_flag=True, help="Don't ask; the differences are still shown.")
@repository_option
@target_options
@changes_the_machine
def sync(environment: Environment, alias: str | None, repository: str | None, yes: bool) -> None:
    """Sync ArgoCD itself and its root application: show the differences, ask, sync.

    Exit code 3: the commit is not signed by an allowed signer, or is not based on the approved commit.
    """
    from playbooks import argocd_sync

    sys.exit(argocd_sync.sync(the_context(environment, the_target(environment, alias), repository, yes)))
