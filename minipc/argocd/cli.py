"""`minipc argocd`: what the deploy repository needs for ArgoCD to manage itself."""

from __future__ import annotations

import click

from minipc.errors import CouldNotVerifyError


@click.group()
def argocd() -> None:
    """ArgoCD's own part of the deploy repository."""


@argocd.command()
def manifest() -> None:
    """Print the manifest of the pinned version, for argocd/install.yaml in the deploy repository."""
    from minipc.argocd.manifest import render
    from minipc.artifacts import own_arch, resolve

    found = resolve("argocd-manifest", own_arch())
    if found.path is None:
        raise CouldNotVerifyError(f"argocd-manifest: {found.why_missing}", "minipc artifacts fetch argocd-manifest")
    click.echo(render(found.path).decode(), nl=False)
