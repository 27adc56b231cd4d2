"""Releases: what would change, the release, its end, and the way back. Each service is released by itself.

Not the component `release`, which writes down what a converge left on the machine (docs/reference/release.md).

    minipc release status [NAME]     desired and deployed state, what is pending, what drifted
    minipc release set [NAME]        commits which version should run
    minipc release sync [NAME]       shows what would change, asks, tries the new version, switches to it, checks it
    minipc release stop [NAME]       ends a release that is under way
    minipc release rollback [NAME]   an earlier desired state becomes the newest commit, and is synced

Desired state changes by a commit only. ArgoCD reads it with a key that can't write. What is synced comes after what was
approved last, and all of it is signed; the commit of a rollback is signed with minipc's own key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from minipc.config.service import Service
from minipc.core.errors import (
    EXIT_CHANGES_PENDING,
    EXIT_FAIL,
    EXIT_PASS,
    EXIT_REFUSED,
    CouldNotVerifyError,
    MinipcError,
    RefusedError,
)
from minipc.core.formatting import count
from minipc.core.verdicts import SIGNS
from minipc.gitops import application as argocd
from minipc.gitops import contract, deploy_files, policy, trial
from minipc.gitops.application import HEALTHY, SUCCEEDED, Application
from minipc.gitops.cluster import Object
from minipc.gitops.deploy_files import Version
from minipc.gitops.drift import look as drift_of
from minipc.gitops.pods import causes, component
from minipc.gitops.render import Change, difference, render
from minipc.gitops.repository import Commit, Repository
from minipc_machine.gitops_drift import Drift
from playbooks import release_steps as steps
from playbooks.release_steps import Context

TIMEOUT_S = steps.TIMEOUT_S
_SUBJECT = re.compile(r"^(Roll back to [0-9a-f]{12}: )+")


@dataclass(frozen=True)
class State:
    """Attributes:
    application: as ArgoCD sees it.
    desired: newest commit of the branch.
    pending: commits that were not released.
    changes: what a sync to the newest commit would change in Git's own objects, since what was approved last.
    wanted: the objects of the newest commit.
    drift: what someone changed in the cluster.
    approved: the commit that was approved last; empty when there is none.
    refused: why the newest commit may not be synced; None when it may.
    """

    application: Application
    desired: Commit
    pending: tuple[Commit, ...]
    changes: Change
    wanted: Sequence[Object]
    drift: Drift
    approved: str = ""
    refused: RefusedError | None = None

    @property
    def clean(self) -> bool:
        """Whether what should run runs, approved and unchanged."""
        as_approved = not self.approved or self.application.deployed == self.approved
        return as_approved and not self.changes and not self.drift.found and self.application.health == HEALTHY

    @property
    def exit_code(self) -> int:
        """1 the last sync failed or something is not healthy, 3 what is desired may not be synced, 2 something is
        pending or drifted, 0 none of these."""
        application = self.application
        if application.operation and application.operation not in (SUCCEEDED, "Running"):
            return EXIT_FAIL
        if self.refused:
            return EXIT_REFUSED
        if self.changes or self.drift.found:
            return EXIT_CHANGES_PENDING
        return EXIT_PASS if application.health == HEALTHY else EXIT_FAIL


def look(context: Context, service: Service) -> State:
    """Desired state, deployed state, and what is between them. What may not be synced is looked at all the same.

    Raises:
        CouldNotVerifyError: cluster, repository or registry don't answer, or desired state can't be built.
    """
    name, repository = service.name, context.repository
    now, approved = argocd.refresh(context.cluster, name), context.approved(name)
    desired = repository.commit(repository.head)
    base = now.deployed and (approved or now.deployed)
    base = base if base and repository.has(base) else ""
    with ThreadPoolExecutor() as pool:
        # Before the first sync, ArgoCD lists what it would make as missing.
        drifting = pool.submit(drift_of, context.cluster, name) if now.history else None
        built = pool.submit(objects, context, now.path, desired.hash)
        before = earlier(context, now.path, base) if base else []
    drift = drifting.result() if drifting else Drift([], [], "", 0)
    after, refused = before, None
    try:
        after = built.result()
        policy.demand(name, after, now.repository)
        contract.demand(service, after)
        repository.admit(desired.hash)
        # Last: what nobody signed must not choose which registry is asked.
        steps.demand_signed(context, service, after, listed_count=True)
    except RefusedError as error:
        refused = error
    pending = repository.between(base, desired.hash, now.path) if base else [desired]
    return State(now, desired, tuple(pending), difference(before, after), after, drift, approved, refused)


def objects(context: Context, path: str, commit: str) -> list[Object]:
    """Render a folder of the deploy repository. Raises as `render`."""
    return render(context.cluster, context.repository.tree(commit), path, commit)


def earlier(context: Context, path: str, commit: str) -> list[Object]:
    """Render an earlier state for comparison. Returns nothing if it cannot be rendered, so that everything is new."""
    try:
        return objects(context, path, commit)
    except (RefusedError, CouldNotVerifyError):
        return []


def status(context: Context, service: Service, *, full: bool = False) -> int:
    """Says where a service stands; returns the exit code.

    Args:
        full: show the differences, not only how many there are.

    Raises:
        CouldNotVerifyError: cluster or repository don't answer.
    """
    state = look(context, service)
    now, say = state.application, context.say
    say(f"service    {service.name}")
    say(f"desired    {context.repository.last_change(now.path, state.desired.hash)}")
    if now.history:
        last = now.history[-1]
        known = context.repository.has(last.revision)
        missing = f"{last.revision[:12]}, which the deploy repository does not have"
        say(f"deployed   {context.repository.commit(last.revision) if known else missing}")
        say(f"           at {last.deployed_at} by {last.by}, {now.health}")
    else:
        say("deployed   nothing yet")
    if now.operation:
        say(f"last sync  {now.operation}: {now.operation_revision[:12]} {now.operation_message}")
    for step in now.failed_steps:
        say(f"           {steps.step_line(step)}")
    for problem in now.problems if now.history else ():
        say(f"           {problem}")
    for name in trial.running(context.cluster, service.name):
        say(f"under way  {name}")
    for cause in causes(context.cluster, service.name, lambda pod: component(pod) in service.processes):
        for number, line in enumerate(cause.lines):
            say(f"{'not ready' if not number else '':10} {line}")
    say(f"approved   {state.approved[:12] or 'nothing yet'}")
    if state.refused:
        say(f"REFUSED    {state.refused}")
    say(f"pending    {_counted(state)}")
    for commit in state.pending if state.changes else ():
        say(f"           {commit}")
    say(f"drift      {_drifted(state)}")
    for each in (*state.drift.changed, *(f"{name} is gone" for name in state.drift.missing)):
        say(f"           {each}")
    if full:
        for text in filter(None, (str(state.changes), state.drift.diff)):
            say(f"\n{text.rstrip()}")
    return state.exit_code


def _counted(state: State) -> str:
    return f"{count(len(state.changes.objects), 'object')} would change" if state.changes else "nothing"


def _drifted(state: State) -> str:
    drift = state.drift
    if not state.application.history:
        return "none: nothing was released yet"
    if drift.found:
        return f"{count(len(drift.changed) + len(drift.missing), 'object')} of {drift.checked}, changed manually"
    return f"none in {count(drift.checked, 'object')}"


def sync(context: Context, service: Service, *, timeout_s: float = TIMEOUT_S) -> int:
    """Releases the newest desired state of a service; returns the exit code: 0 it runs and passed, 1 it failed.

    Raises:
        RefusedError: the commit is not signed, does not come after what was approved last, holds what it may not, or
            breaks the contract; the operator said no; or a release is under way. Nothing was changed.
        CouldNotVerifyError: cluster or repository don't answer, or it takes too long.
    """
    state, say = look(context, service), context.say
    if state.clean and not state.refused and state.application.operation == SUCCEEDED:
        steps.ensure_admitted(context, service, state.wanted)
        short = state.desired.hash[:12]
        say(f"nothing to do: {service.name} is deployed as {short} describes it, unchanged and healthy")
        return EXIT_PASS
    show(context, state.changes, state.drift.diff)
    if state.refused:
        raise state.refused
    say(f"desired  {state.desired}")
    say(f"pending  {_counted(state)}; drift: {_drifted(state)}")
    argocd.demand_idle(state.application)
    if not context.ask(f"Release {state.desired.hash[:12]} of {service.name} to {context.environment}?"):
        raise RefusedError("not released: you answered no", "`minipc release status` shows what is pending")
    code = steps.release(context, service, state.application, state.desired, state.wanted, timeout_s=timeout_s)
    if code == EXIT_FAIL:
        _after_failure(context, service, state, timeout_s)
    return code


def _after_failure(context: Context, service: Service, state: State, timeout_s: float) -> None:
    """Go back where the service file says so and the switch was begun; else say how."""
    back = state.approved if state.application.deployed else ""
    now = argocd.refresh(context.cluster, service.name)
    if now.attempted != state.desired.hash:
        return  # It failed before the switch.
    same = back and context.repository.same(back, state.desired.hash, folder_of(service, now))
    if service.rollback == "automatic" and back and not same:
        context.say(f"rollback: automatic; going back to {back[:12]}")
        go_back(context, service, now, context.repository.commit(back), timeout_s)
        return
    context.say(
        f"  next: `minipc release rollback {service.name}`, or fix it with another commit and "
        f"`minipc release sync {service.name}`"
    )


def show(context: Context, changes: Change, drift: str = "") -> None:
    """Show what would change with its content, and after that each object in one line."""
    for text in filter(None, (str(changes), drift)):
        context.say(text.rstrip())
    for line in changes.summary:
        context.say(f"  {line}")


def stop(context: Context, service: Service) -> int:
    """End a release of a service that is under way; returns the exit code.

    Raises:
        RefusedError: the operator said no.
        CouldNotVerifyError: the cluster doesn't answer, or ArgoCD does not end its sync.
    """
    now, running = argocd.read(context.cluster, service.name), trial.running(context.cluster, service.name)
    if not now.running and not running:
        context.say(f"no release of {service.name} is under way")
        return EXIT_PASS
    under_way = [*running, *([f"the sync to {now.operation_revision[:12]}"] if now.running else [])]
    if not context.ask(f"Stop {', '.join(under_way)}? A migration that is stopped may have done a part of its work."):
        raise RefusedError("not stopped: you answered no", "`minipc release status` shows what is under way")
    trial.stop(context.cluster, service.name)
    if now.running:
        argocd.stop(context.cluster, service.name)
        if not argocd.wait_idle(context.cluster, service.name, steps.STOP_S):
            raise CouldNotVerifyError(
                f"ArgoCD has not ended its sync within {steps.STOP_S} s",
                "`minipc release status`; `minipc verify argocd`",
            )
    context.say(f"{SIGNS['pass']} stopped: {', '.join(under_way)}")
    context.say(f"  next: `minipc release status {service.name}`, then rollback or sync")
    return EXIT_PASS


def rollback(context: Context, service: Service, to: str | None = None, *, timeout_s: float = TIMEOUT_S) -> int:
    """Make an earlier desired state of a service the newest commit and release it. Returns the exit code.

    Args:
        to: a commit or tag of the deploy repository; None: the last one that was released and that differs from now.

    Raises:
        ConfigError: there is no such commit.
        RefusedError: the operator said no, there is nothing to go back to, it never was part of what was approved, what
            is on the branch may not be built upon, or a sync is under way. Nothing was pushed.
        CouldNotVerifyError: cluster or repository don't answer, or it takes too long.
    """
    name, repository = service.name, context.repository
    now = argocd.refresh(context.cluster, name)
    argocd.demand_idle(now)
    head, folder = repository.head, folder_of(service, now)
    repository.admit(head)
    goal = repository.commit(to) if to else choose(repository, context.environment.name, service, now)
    if not repository.contains(goal.hash, head):
        raise RefusedError(
            f"{goal.hash[:12]} is not part of the history of {head[:12]}",
            "choose a commit of its history; `minipc release status` shows what is deployed",
        )
    current = all(repository.same(goal.hash, each, folder) for each in (head, now.attempted) if each)
    if current and now.operation == SUCCEEDED and now.health == HEALTHY:
        raise RefusedError(
            f"{goal.hash[:12]} is already deployed", "give another commit: `minipc release rollback --to COMMIT`"
        )
    wanted = objects(context, now.path, goal.hash)
    policy.demand(name, wanted, now.repository)
    steps.demand_signed(context, service, wanted, listed_count=True)
    show(context, difference(earlier(context, now.path, head), wanted, ("now", "back to")))
    context.say(f"now      {repository.commit(head)}")
    context.say(f"back to  {goal}")
    if not context.ask(f"Roll {name} of {context.environment} back to {goal.hash[:12]}?"):
        raise RefusedError("not rolled back: you answered no", "`minipc release status` shows what is deployed")
    return go_back(context, service, argocd.refresh(context.cluster, name), goal, timeout_s)


def go_back(context: Context, service: Service, now: Application, goal: Commit, timeout_s: float) -> int:
    """Make a commit with an earlier state of a service, and release it without trying it first: it ran before.

    Nothing is migrated: migrations only add things, so that the earlier version works with the newer schema.

    Raises:
        RefusedError: a sync is under way. Nothing was pushed.
        CouldNotVerifyError: cluster or repository don't answer, or it takes too long.
    """
    argocd.demand_idle(now)
    repository, folder = context.repository, folder_of(service, now)
    if repository.same(goal.hash, repository.head, folder):
        made = repository.head
    else:
        subject = _SUBJECT.sub("", goal.subject)
        made = repository.restore(goal.hash, folder, f"Roll back to {goal.hash[:12]}: {subject}")
    wanted = objects(context, now.path, made)
    return steps.release(context, service, now, repository.commit(made), wanted, trial_run=False, timeout_s=timeout_s)


def folder_of(service: Service, now: Application) -> str:
    """Return the folder that is rolled back: the environment's; with own manifests all of the service's."""
    return now.path.partition("/")[0] if service.manifests == "own" else now.path


def choose(repository: Repository, environment: str, service: Service, now: Application) -> Commit:
    """Return the last desired state that was released and is neither running nor the last one tried.

    Raises:
        RefusedError: there is none.
    """
    current, folder = now.attempted or repository.head, folder_of(service, now)
    for commit in _known(repository, environment, service.name, now.history):
        # Whoever can push can set a tag; only what was part of the approved history is gone back to.
        if repository.contains(commit.hash, repository.head) and not repository.same(commit.hash, current, folder):
            return commit
    raise RefusedError(
        "no earlier release is known that differs from the deployed one",
        "give a commit: `minipc release rollback --to COMMIT`",
    )


def _known(repository: Repository, environment: str, name: str, history: Sequence[argocd.Release]) -> list[Commit]:
    """Released states, newest first. The repository's tags outlive the cluster, ArgoCD's own history doesn't."""
    found = repository.released(environment, name)
    if found:
        return found
    known = []
    for each in reversed(history):
        try:
            known.append(repository.commit(each.revision))
        except MinipcError:
            continue  # history was rewritten
    return known


def set_version(context: Context, service: Service, version: Version) -> int:
    """Commit which version of a service should run, signed; nothing is synced. Return the exit code.

    Raises:
        RefusedError: what is on the branch may not be built upon, or the image is not signed with the service's key.
        CouldNotVerifyError: repository or registry cannot be reached.
    """
    repository = context.repository
    context.signed(service, f"{version.repository}@{version.digest}")
    repository.admit(repository.head)
    path = deploy_files.release_file(service.name, context.environment.name)
    content = deploy_files.release(service, version).decode()
    made = repository.write(path, content, f"Release {version.name[:40]} of {service.name}")
    context.say(f"{SIGNS['pass']} {service.name}: {version.name} is desired, commit {made[:12]}")
    context.say(f"  next: `minipc release sync {service.name}`")
    return EXIT_PASS
