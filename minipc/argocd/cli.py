"""`minipc argocd`: what the deploy repository needs for ArgoCD to manage itself, and the sync of it."""

from __future__ import annotations

import sys
from typing import Any

import click

from minipc.errors import CouldNotVerifyError


@click.group()
def argocd() -> None:
    """ArgoCD itself: its manifest and key for the deploy repository, and its sync."""


@argocd.command()
def manifest() -> None:
    """Print the manifest of the pinned version, for argocd/install.yaml in the deploy repository."""
    from minipc.argocd.manifest import render
    from minipc.artifacts import own_arch, resolve

    found = resolve("argocd-manifest", own_arch())
    if found.path is None:
        raise CouldNotVerifyError(f"argocd-manifest: {found.why_missing}", "minipc artifacts fetch argocd-manifest")
    click.echo(render(found.path).decode(), nl=False)


@argocd.command()
@click.option(
    "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
)
def key(environment: Any) -> None:
    """Print the public half of the key that reads the deploy repository: add it there, as a read-only deploy key."""
    from minipc.keys import public_key
    from minipc.secrets import open_store
    from minipc.secrets.catalogue import ARGOCD_DEPLOY_KEY

    click.echo(public_key(open_store(environment).get(ARGOCD_DEPLOY_KEY)))


@argocd.command()
@click.option("--yes", is_flag=True, help="Don't ask. What differs is shown all the same.")
@click.option("--host", "alias", help="Which machine, when the inventory has several.")
@click.option(
    "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
)
def sync(environment: Any, alias: str | None, yes: bool) -> None:
    """Sync ArgoCD itself and its root application: show what differs, ask, sync."""
    from minipc.gitops.cluster import SshCluster
    from minipc.inventory import the_target
    from minipc.wording import plain
    from playbooks import argocd_sync

    cluster = SshCluster(the_target(environment, alias))
    ask = (lambda _: True) if yes else (lambda question: click.confirm(question, default=False))
    sys.exit(argocd_sync.sync(cluster, lambda line: click.echo(plain(line)), ask))
