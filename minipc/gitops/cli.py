"""`minipc release` and `minipc trace`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from minipc import git
from minipc.gitops import application as argocd
from minipc.gitops.cluster import SshCluster
from minipc.inventory import the_target
from minipc.wording import plain

_Command = Callable[..., None]


def _target_options(command: _Command) -> _Command:
    command = click.option("--host", "alias", help="Which machine, when the inventory has several.")(command)
    return click.option(
        "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
    )(command)


def _repository_option(command: _Command) -> _Command:
    return click.option(
        "--repository", metavar="ADDRESS", help="Where you reach the deploy repository; else where ArgoCD does."
    )(command)


_yes_option = click.option("--yes", is_flag=True, help="Don't ask. What would change is shown all the same.")


@click.group()
def release() -> None:
    """What should run of the service, what runs, and the step between: desired state is in the deploy repository.

    Not the component `release` (docs/reference/release.md): that is converged by `minipc apply`.
    """


@release.command()
@click.option("--diff", "full", is_flag=True, help="Show the differences.")
@_repository_option
@_target_options
def status(environment: Any, alias: str | None, repository: str | None, full: bool) -> None:
    """Show desired and deployed state, what is pending, and what was changed by hand in the cluster.

    Exits 2 when something is pending or drifted, 1 when the last sync failed or something isn't healthy.
    """
    from playbooks import release as procedures

    sys.exit(procedures.status(_service(environment, alias, repository, yes=False), full=full))


@release.command()
@_yes_option
@_repository_option
@_target_options
def sync(environment: Any, alias: str | None, repository: str | None, yes: bool) -> None:
    """Release the newest desired state: show what would change, ask, sync, wait for the smoke job, judge."""
    from playbooks import release as procedures

    sys.exit(procedures.sync(_service(environment, alias, repository, yes)))


@release.command()
@click.argument("commit", required=False)
@_yes_option
@_repository_option
@_target_options
def rollback(environment: Any, alias: str | None, repository: str | None, yes: bool, commit: str | None) -> None:
    """Go back to COMMIT of the deploy repository, or to the last release that passed: a new commit, then a sync."""
    from playbooks import release as procedures

    sys.exit(procedures.rollback(_service(environment, alias, repository, yes), commit))


@click.command()
@click.argument("what", required=False, metavar="[POD|URL]")
@_repository_option
@_target_options
def trace(environment: Any, alias: str | None, repository: str | None, what: str | None) -> None:
    """Show which commit, image, desired state and rollout pods come from: all, POD, or the one that answers URL.

    Exits 1 when a pod runs another image than desired state names.
    """
    from playbooks import release as procedures

    target = the_target(environment, alias)
    sys.exit(
        procedures.show_trace(
            _service(environment, alias, repository, yes=False), what, target.settings.edge.domain, git.subject
        )
    )


def _service(environment: Any, alias: str | None, repository: str | None, yes: bool) -> Any:
    from minipc.gitops.repository import open_repository
    from playbooks.release import Service

    target = the_target(environment, alias)
    cluster = SshCluster(target)
    application = argocd.read(cluster)
    return Service(
        environment=environment,
        cluster=cluster,
        repository=open_repository(target, application, repository),
        say=lambda line: click.echo(plain(line)),
        ask=(lambda _: True) if yes else (lambda question: click.confirm(question, default=False)),
    )
