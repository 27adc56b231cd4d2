"""`minipc release` and `minipc trace`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from minipc.cli.options import changes_the_machine, environment_option, target_options
from minipc.config.service import Service
from minipc.core import git
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError
from minipc.core.formatting import plain
from minipc.gitops import application as argocd
from minipc.gitops import signing
from minipc.gitops.cluster import SshCluster
from minipc.gitops.policy import ROOT
from minipc.remote.inventory import Target, the_target

_Command = Callable[..., None]


def repository_option(command: _Command) -> _Command:
    return click.option(
        "--repository",
        metavar="ADDRESS",
        help="URL of the deploy repository for you, if it differs from the one that ArgoCD uses.",
    )(command)


_name_argument = click.argument("name", required=False)
_yes_option = click.option("--yes", is_flag=True, help="Don't ask; the changes are still shown.")


@click.group()
def release() -> None:
    """Release a version of a service: compare desired and deployed state, sync, stop, roll back.

    The desired state is in the deploy repository. NAME may be left out if there is only one service. The component
    `release` (docs/reference/release.md) is something else: `minipc apply` converges it.
    """


@release.command(short_help="Show desired and deployed state, and drift.")
@_name_argument
@click.option("--diff", "full", is_flag=True, help="Show the differences.")
@repository_option
@target_options
def status(environment: Environment, alias: str | None, repository: str | None, full: bool, name: str | None) -> None:
    """Show desired and deployed state, pending changes, and manual changes of NAME, or of all services.

    Exit code 3: the newest commit must not be synced (it is not signed, or not based on the approved commit). Exit code
    2: changes are pending, or the cluster drifted. Exit code 1: the last sync failed, or something is not healthy.
    """
    from playbooks import release as procedures

    target = the_target(environment, alias)
    declared = target.settings.services.declared
    wanted = [named(target, name)] if name or not declared else declared
    context = the_context(environment, target, repository, yes=False)
    codes = []
    for number, each in enumerate(wanted):
        if number:
            click.echo()
        codes.append(procedures.status(context, each, full=full))
    # A failure counts for more than something that is pending.
    sys.exit(next((code for code in (1, 3, 2) if code in codes), 0))


@release.command("set")
@_name_argument
@click.option("--version", help="What the version is called, such as v2.2.9 or a commit; default: as its image says.")
@click.option("--digest", help="Digest of its image, sha256:…; of an image from a registry.")
@repository_option
@target_options
def set_command(
    environment: Environment,
    alias: str | None,
    repository: str | None,
    name: str | None,
    version: str | None,
    digest: str | None,
) -> None:
    """Commit which version of NAME should run, without CI. Nothing is synced.

    With --digest the image comes from its registry; without, it is the one that `minipc service image` added last.
    """
    from playbooks import release as procedures

    target = the_target(environment, alias)
    service = named(target, name)
    wanted = _version(service, version, digest)
    sys.exit(procedures.set_version(the_context(environment, target, repository, yes=False), service, wanted))


@release.command(short_help="Release the newest desired state.")
@_name_argument
@_yes_option
@repository_option
@target_options
@changes_the_machine
def sync(environment: Environment, alias: str | None, repository: str | None, yes: bool, name: str | None) -> None:
    """Release the newest desired state: show the changes, ask, migrate, test one new pod, sync, report the result.

    Users reach the new version only after it has passed its smoke checks. Exit code 3: the commit is not signed by an
    allowed signer, or is not based on the approved commit.
    """
    from playbooks import release as procedures

    target = the_target(environment, alias)
    sys.exit(procedures.sync(the_context(environment, target, repository, yes), named(target, name)))


@release.command(short_help="End a release that is under way.")
@_name_argument
@_yes_option
@repository_option
@target_options
@changes_the_machine
def stop(environment: Environment, alias: str | None, repository: str | None, yes: bool, name: str | None) -> None:
    """End a release that is under way: its migration, the pods that try it, and the sync."""
    from playbooks import release as procedures

    target = the_target(environment, alias)
    sys.exit(procedures.stop(the_context(environment, target, repository, yes), named(target, name)))


@release.command(short_help="Return to an earlier state of NAME.")
@_name_argument
@click.option("--to", "commit", metavar="COMMIT", help="Of the deploy repository; default: the last that was released.")
@_yes_option
@repository_option
@target_options
@changes_the_machine
def rollback(
    environment: Environment, alias: str | None, repository: str | None, yes: bool, name: str | None, commit: str | None
) -> None:
    """Return to an earlier state of NAME with a new commit and a sync. Other services stay as they are."""
    from playbooks import release as procedures

    target = the_target(environment, alias)
    context = the_context(environment, target, repository, yes)
    sys.exit(procedures.rollback(context, named(target, name), commit))


@release.command(short_help="Approve the current commit of the deploy repository.")
@repository_option
@target_options
def pin(environment: Environment, alias: str | None, repository: str | None) -> None:
    """Approve the current commit of the deploy repository: show all of it, ask, sign it and pin it.

    Needed before the first sync, and after you removed a signer or rewrote history. It always asks. It syncs nothing.
    """
    from playbooks import argocd_sync

    for line in signing.prepare(environment):
        click.echo(line)
    target = the_target(environment, alias)
    context = the_context(environment, target, repository, yes=False)
    sys.exit(argocd_sync.pin(context, target.settings.argocd.path, target.settings.services.declared))


@release.command(short_help="Print minipc's line for inventory/allowed_signers.")
@environment_option
def signer(environment: Environment) -> None:
    """Print the line for inventory/allowed_signers that allows minipc's own key."""
    click.echo(signing.signer_line(signing.signing_key(environment)))


@click.command()
@click.argument("what", required=False, metavar="[POD|URL]")
@repository_option
@target_options
def trace(environment: Environment, alias: str | None, repository: str | None, what: str | None) -> None:
    """Show which version, image, desired state and rollout the pods come from.

    Shows all pods, or POD, or the pod that answers URL. Exit code 1: a pod runs another image than the desired state
    names.
    """
    from playbooks.release_trace import show_trace

    target = the_target(environment, alias)
    context = the_context(environment, target, repository, yes=False)
    sys.exit(show_trace(context, target.settings.services.declared, what, git.subject))


def named(target: Target, name: str | None) -> Service:
    """Return the service of that name, or the only one. Raises ConfigError."""
    declared = target.settings.services.declared
    if name is None and len(declared) == 1:
        return declared[0]
    if name is None:
        names = ", ".join(each.name for each in declared) or "none"
        raise ConfigError(f"name a service; there are: {names}", "minipc release COMMAND NAME")
    return target.settings.services.named(name)


def _version(service: Service, version: str | None, digest: str | None) -> Any:
    """Return the version that is named, with its image. Raises MinipcError if there is no such image."""
    from minipc.gitops.deploy_files import Version, of_image
    from minipc.services import images

    if digest:
        return Version(service.image, "", digest, version or digest)
    if service.image_signer:
        raise ConfigError(
            f"{service.name} names a signer, and signatures are of images in a registry",
            f"minipc release set {service.name} --digest sha256:…",
        )
    found = images.current(service.name)
    if found is None:
        raise ConfigError(
            f"no image of {service.name} was added",
            f"`minipc service image {service.name} FILE.tar`, or give its --digest in the registry",
        )
    return of_image(found, version)


def the_context(environment: Environment, target: Target, repository: str | None, yes: bool) -> Any:
    """Return what the procedures act on. Raises MinipcError if cluster or repository cannot be reached.

    Args:
        yes: do not ask.
    """
    from minipc.gitops.repository import open_repository
    from minipc.services.signatures import verifier
    from playbooks.backup import after_release, before_release
    from playbooks.release_steps import Context

    cluster = SshCluster(target)
    return Context(
        environment=environment,
        cluster=cluster,
        repository=open_repository(target, argocd.read(cluster, ROOT), repository),
        say=lambda line: click.echo(plain(line)),
        ask=(lambda _: True) if yes else (lambda question: click.confirm(plain(question), default=False)),
        before=lambda service: before_release(target, service),
        after=lambda: after_release(target),
        signed=verifier(target.settings),
    )
