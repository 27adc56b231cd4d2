"""The two applications of ArgoCD's own: itself, and the root application, which defines all others.

Neither follows the repository by itself. What they may change is as good as the whole cluster. Anyone who can write to
the repository would own it a minute later. A person syncs them, after a look at what differs, with its content.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence

import yaml

from minipc import artifacts
from minipc.config.service import Service
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, MinipcError, RefusedError
from minipc.core.verdicts import SIGNS
from minipc.core.yaml_text import LOADER
from minipc.gitops import application as argocd
from minipc.gitops import argocd_manifest, policy
from minipc.gitops.application import SUCCEEDED, Application
from minipc.gitops.cluster import Cluster, Object
from minipc.gitops.policy import ROOT, SYSTEM
from minipc.gitops.render import Change, difference
from minipc.gitops.repository import Repository
from playbooks import release
from playbooks.release_steps import Context, approve, demand_signed

# In this order: a new version may know what the root application defines.
APPLICATIONS = (SYSTEM, ROOT)
TIMEOUT_S = 300


def sync(context: Context) -> int:
    """Show what would change in each application that is not a service, ask, and sync it. Returns the exit code.

    Raises:
        RefusedError: the commit is not signed, does not come after what was approved last, or holds what it may not;
            the operator said no; or a sync is under way.
        CouldNotVerifyError: the cluster doesn't answer, or it takes too long.
    """
    say, repository = context.say, context.repository
    for name in APPLICATIONS:
        now = argocd.refresh(context.cluster, name)
        desired, approved = repository.commit(repository.head), repository.trust.approvals.commits().get(name, "")
        changes, wanted = compare(context, name, now.path, approved, desired.hash)
        release.show(context, changes)
        policy.demand(name, wanted, now.repository)
        repository.admit(desired.hash)
        if now.sync == argocd.SYNCED and now.seen == desired.hash and not changes:
            say(f"{SIGNS['pass']} {name}: nothing to do; the cluster is as {desired.hash[:12]} describes it")
            approve(context, desired.hash, name)
            continue
        if not ask_for(context, name, now, changes, desired.hash):
            raise RefusedError(
                f"{name} is not synced: you answered no", "read `git -C YOUR-CLONE log -p`, then run it again"
            )
        after = bring(context.cluster, name, now, desired.hash)
        if trouble := failure(after, desired.hash):
            say(f"{SIGNS['fail']} {name}: {trouble}")
            return EXIT_FAIL
        approve(context, desired.hash, name)
        say(f"{SIGNS['pass']} {name}: synced to {desired.hash[:12]}")
        if name == ROOT:
            repository.trust.approvals.keep({*APPLICATIONS, *_services(wanted)})
    return EXIT_PASS


def ask_for(context: Context, name: str, now: Application, changes: Change, commit: str) -> bool:
    """Whether a person wants this application synced to this commit."""
    if not changes:
        context.say(f"  {name}: the repository is as it was approved; the cluster differs from it")
    return context.ask(f"Sync {name} to {commit[:12]} of {now.repository}, {now.path}?")


def compare(context: Context, name: str, path: str, approved: str, commit: str) -> tuple[Change, list[Object]]:
    """Return what a commit changes in an application since the last approval, and all its objects.

    Where nothing was approved yet, ArgoCD itself is compared with what `minipc argocd manifest` prints.
    """
    if approved and context.repository.has(approved):
        before = release.earlier(context, path, approved)
    else:
        before = _bootstrapped() if name == SYSTEM else []
    wanted = release.objects(context, path, commit)
    return difference(before, wanted, ("approved", "new")), wanted


def _bootstrapped() -> list[Object]:
    found = artifacts.resolve("argocd-manifest", artifacts.own_arch(), fetch=False)
    if found.path is None:
        return []
    return [each for each in yaml.load_all(argocd_manifest.render(found.path), Loader=LOADER) if each]


def pin(context: Context, root_path: str, services: Sequence[Service]) -> int:
    """Show everything that the deploy repository contains now, ask, sign and approve it. Returns the exit code.

    For the first sync, and for what `sync` refuses although the operator means it: a signer who was removed, history
    that the operator rewrote. Nothing is synced.

    Args:
        services: the declared ones; images of those that name a signer must be signed.

    Raises:
        RefusedError: something in it may never be synced, an image is not signed, or the operator said no.
        CouldNotVerifyError: cluster, repository or registry don't answer.
    """
    repository, say = context.repository, context.say
    head, approvals = repository.commit(repository.head), repository.trust.approvals.commits()
    address = argocd.read(context.cluster, ROOT).repository
    held: dict[str, list[Object]] = {}
    for name, path in _paths(context, root_path, head.hash).items():
        say(f"--- {name}: {path} of {head}")
        changes, held[name] = compare(context, name, path, approvals.get(name, ""), head.hash)
        release.show(context, changes)
    for name, wanted in held.items():
        policy.demand(name, wanted, address)
    for service in services:
        if service.name in held:
            demand_signed(context, service, held[service.name])
    for name, approved in approvals.items():
        if not repository.contains(approved, head.hash):
            say(
                f"{SIGNS['fail']} {head.hash[:12]} is NOT based on {approved[:12]}, the commit approved last for {name}"
            )
    say(f"newest   {head}, by {head.author}")
    if not context.ask(
        f"Approve all of this for {context.environment}? A rebuild syncs exactly this and does not ask."
    ):
        raise RefusedError("nothing is approved: you answered no", "read `git -C YOUR-CLONE log -p`, then run it again")
    approve(context, repository.approve(), *held)
    say(f"{SIGNS['pass']} approved: {', '.join(held)}. next: `minipc argocd sync`, then `minipc release sync`")
    return EXIT_PASS


def _paths(context: Context, root_path: str, commit: str) -> Mapping[str, str]:
    """Return the folder of each application; the root application defines those of the services."""
    defined = release.objects(context, root_path, commit)
    return {SYSTEM: argocd_manifest.PATH.partition("/")[0], ROOT: root_path, **_services(defined)}


def _services(objects: Sequence[Object]) -> dict[str, str]:
    """Return the folder of each service that the root application defines."""
    return {
        each["metadata"]["name"]: str(each["spec"]["source"]["path"])
        for each in objects
        if each["kind"] == "Application" and each["metadata"]["name"] not in APPLICATIONS
    }


def adopt(cluster: Cluster, repository: Repository) -> None:
    """Sync each application that was never synced in this cluster to its approved commit, without a question.

    Raises:
        RefusedError: nothing was approved, or nobody who may sign has signed it.
        MinipcError: a sync failed.
        CouldNotVerifyError: the cluster doesn't answer, or it takes too long.
    """
    for name in APPLICATIONS:
        now = argocd.refresh(cluster, name)
        if now.history:
            continue
        approved = repository.admit_approved(name)
        if trouble := failure(bring(cluster, name, now, approved), approved):
            raise MinipcError(f"the first sync of {name} failed: {trouble}", "run `minipc argocd sync`")


def bring(cluster: Cluster, name: str, now: Application, commit: str) -> Application:
    """Sync to a commit and return the result.

    The application and the project of a service that is gone are removed; what they deployed is the converge's to
    remove. Nothing of ArgoCD itself is removed.
    """
    who = f"minipc argocd ({getpass.getuser()})"
    argocd.start(cluster, now, commit, who, name, prune=name == ROOT)
    return argocd.wait(cluster, now, timeout_s=TIMEOUT_S, show=lambda _: None, name=name)


def failure(after: Application, commit: str) -> str:
    """Why a sync did not do what it was asked to; empty when it did."""
    return argocd.other_revision(after, commit) if after.operation == SUCCEEDED else after.operation_message
