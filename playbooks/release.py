"""Releases: what would change, the sync that does it, the smoke that judges it, and the way back.

Not the component `release`, which writes down what a converge left on the machine (docs/reference/release.md).

    minipc release status      desired and deployed state, what is pending, what drifted
    minipc release sync        shows what would change, asks, syncs, waits for the smoke job, gives the verdict
    minipc release rollback    an earlier desired state becomes the newest commit, and is synced

Desired state changes by a commit only. ArgoCD reads it with a key that can't write; commits of a rollback are made with
the operator's own credentials. A release that was cut off goes on in the cluster: `minipc release status`.
"""

from __future__ import annotations

import datetime
import getpass
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minipc.errors import (
    EXIT_CHANGES_PENDING,
    EXIT_FAIL,
    EXIT_PASS,
    CouldNotVerifyError,
    MinipcError,
    RefusedError,
)
from minipc.gitops import application as argocd
from minipc.gitops import drift as drifting
from minipc.gitops.application import HEALTHY, SUCCEEDED, SYNCED, Application, Step
from minipc.gitops.cluster import NAMESPACE, Cluster, Object, items, kubectl
from minipc.gitops.drift import Drift
from minipc.gitops.render import difference, render
from minipc.gitops.repository import Commit, Repository
from minipc.gitops.trace import Traced, answering, desired_state, trace
from minipc.verdicts import SIGNS
from minipc.wording import count, one_line

Say = Callable[[str], None]
Ask = Callable[[str], bool]

TIMEOUT_S = 900


@dataclass(frozen=True)
class Service:
    """What the procedures act on.

    Attributes:
        environment: lab or production.
        cluster: where it runs.
        repository: where its desired state is.
        say: takes a line for the operator.
        ask: takes a question; whether the answer was yes.
    """

    environment: str
    cluster: Cluster
    repository: Repository
    say: Say
    ask: Ask


@dataclass(frozen=True)
class State:
    """Attributes:
    application: as ArgoCD sees it.
    desired: newest commit of the branch.
    pending: commits that were not released.
    changes: what a sync to the newest commit would change in Git's own objects.
    drift: what someone changed in the cluster.
    """

    application: Application
    desired: Commit
    pending: tuple[Commit, ...]
    changes: str
    drift: Drift

    @property
    def clean(self) -> bool:
        """Whether what should run runs, unchanged."""
        return not self.changes and not self.drift.found and self.application.health == HEALTHY

    @property
    def exit_code(self) -> int:
        """1 the last sync failed or something is not healthy, 2 something is pending or drifted, 0 neither."""
        application = self.application
        if application.operation and application.operation not in (SUCCEEDED, "Running"):
            return EXIT_FAIL
        if self.changes or self.drift.found:
            return EXIT_CHANGES_PENDING
        return EXIT_PASS if application.health == HEALTHY else EXIT_FAIL


def look(service: Service) -> State:
    """Desired state, deployed state, and what is between them.

    Raises:
        CouldNotVerifyError: cluster or repository don't answer, or desired state can't be built.
    """
    now = argocd.refresh(service.cluster)
    repository = service.repository
    desired = repository.commit(repository.head)
    deployed = now.deployed
    before = _objects(service, now, deployed) if deployed else []
    after = before if deployed == desired.hash else _objects(service, now, desired.hash)
    pending = repository.between(deployed, desired.hash) if deployed else [desired]
    return State(now, desired, tuple(pending), difference(before, after), drifting.look(service.cluster))


def _objects(service: Service, application: Application, commit: str) -> list[Object]:
    return render(service.cluster, service.repository.archive(commit), application.path)


def status(service: Service, *, full: bool = False) -> int:
    """Says where the service stands; returns the exit code.

    Args:
        full: show the differences, not only how many there are.

    Raises:
        CouldNotVerifyError: cluster or repository don't answer.
    """
    state = look(service)
    now, say = state.application, service.say
    say(f"desired    {state.desired}")
    if now.history:
        last = now.history[-1]
        say(f"deployed   {service.repository.commit(last.revision)}")
        say(f"           at {last.deployed_at} by {last.by}, {now.health}")
    else:
        say("deployed   nothing yet")
    if now.operation:
        say(f"last sync  {now.operation}: {now.operation_revision[:12]} {now.operation_message}")
    for step in now.failed_steps:
        say(f"           {_line(step)}")
    for problem in now.problems:
        say(f"           {problem}")
    say(f"pending    {_counted(state)}")
    for commit in state.pending if state.changes else ():
        say(f"           {commit}")
    say(f"drift      {_drifted(state.drift)}")
    for each in (*state.drift.changed, *(f"{name} is gone" for name in state.drift.missing)):
        say(f"           {each}")
    if full:
        for text in filter(None, (state.changes, state.drift.diff)):
            say(f"\n{text.rstrip()}")
    return state.exit_code


def _counted(state: State) -> str:
    return f"{count(state.changes.count('--- released: '), 'object')} would change" if state.changes else "nothing"


def _drifted(drift: Drift) -> str:
    if drift.found:
        return f"{count(len(drift.changed) + len(drift.missing), 'object')} of {drift.checked}, changed by hand"
    return f"none in {count(drift.checked, 'object')}"


def sync(service: Service, *, timeout_s: float = TIMEOUT_S) -> int:
    """Releases the newest desired state; returns the exit code: 0 its smoke passed, 1 it failed.

    Raises:
        RefusedError: the operator said no, or a sync is under way; nothing was changed.
        CouldNotVerifyError: cluster or repository don't answer, or it takes too long.
    """
    state = look(service)
    if state.clean and state.application.operation == SUCCEEDED:
        service.say(f"nothing to do: {state.desired.hash[:12]} runs, unchanged and healthy")
        return EXIT_PASS
    for text in filter(None, (state.changes, state.drift.diff)):
        service.say(text.rstrip())
    service.say(f"desired  {state.desired}")
    service.say(f"pending  {_counted(state)}; drift: {_drifted(state.drift)}")
    if not service.ask(f"Release {state.desired.hash[:12]} to {service.environment}?"):
        raise RefusedError("not released: you said no", "`minipc release status` shows what is pending")
    return release(service, state.application, state.desired, timeout_s)


def release(service: Service, before: Application, desired: Commit, timeout_s: float = TIMEOUT_S) -> int:
    """Syncs to a commit without a question, waits, and gives the verdict as exit code.

    Raises:
        RefusedError: a sync is under way.
        CouldNotVerifyError: the cluster doesn't answer, or it takes too long.
    """
    argocd.start(service.cluster, before, desired.hash, f"minipc release ({getpass.getuser()})")
    after = argocd.wait(service.cluster, before, timeout_s=timeout_s, show=lambda step: service.say(_line(step)))
    for line in smoke_lines(service.cluster, after):
        service.say(line)
    contradiction = _contradiction(service.cluster, desired) if after.operation == SUCCEEDED else ""
    if contradiction:
        service.say(f"{SIGNS['fail']} FAIL  {desired.hash[:12]}: the sync succeeded, but {contradiction}")
        service.say("  next: `minipc release status --diff`")
        return EXIT_FAIL
    if after.operation == SUCCEEDED:
        _mark(service, desired)
        service.say(f"{SIGNS['pass']} PASS  {desired.hash[:12]} is released; its smoke passed")
        return EXIT_PASS
    for line in (*reasons(after), *serving(service.cluster)):
        service.say(line)
    service.say(f"{SIGNS['fail']} FAIL  {desired.hash[:12]} is not released: {after.operation_message}")
    service.say("  next: `minipc release rollback`, or mend it with another commit and `minipc release sync`")
    return EXIT_FAIL


def _contradiction(cluster: Cluster, desired: Commit) -> str:
    """What speaks against a sync that says it succeeded; empty when nothing does, or someone pushed meanwhile."""
    now = argocd.refresh(cluster)
    if now.seen != desired.hash or (now.sync == SYNCED and now.health == HEALTHY):
        return ""
    return f"the cluster is {now.sync} and {now.health}"


def _mark(service: Service, desired: Commit) -> None:
    """A tag that can be gone back to. Without it the release is no worse; only the cluster remembers it."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        service.repository.mark_released(service.environment, desired.hash, f"{now:%Y%m%dT%H%M%SZ}")
    except CouldNotVerifyError as error:
        service.say(f"it has no tag: {error.what}")


def reasons(after: Application) -> list[str]:
    """Why a sync failed, one line each."""
    return [*map(_line, after.failed_steps), *after.problems]


def _line(step: Step) -> str:
    sign = SIGNS["fail"] if step.failed else SIGNS["pass"] if step.state in (SYNCED, SUCCEEDED) else "…"
    return f"{sign} {step.phase:9} {step.name:24} {step.state:10} {step.message}".rstrip()


def smoke_lines(cluster: Cluster, after: Application) -> list[str]:
    """What the smoke job of this sync found; empty when it did not get that far."""
    if not any(step.phase == "PostSync" for step in after.steps):
        return []
    try:
        text = kubectl(cluster, "logs", "-n", NAMESPACE, "job/smoke", "--tail=-1")
        verdict = json.loads(text[text.index("{") :])
    except (CouldNotVerifyError, ValueError):
        return ["smoke: its output can't be read: kubectl -n workload logs job/smoke"]
    return [
        f"{SIGNS['pass' if check['ok'] else 'fail']} smoke     {check['name']}: {one_line(check['detail'])}"
        for check in verdict["checks"]
    ]


def serving(cluster: Cluster) -> list[str]:
    """After a failed release: who still answers, and what the pods that don't say about it."""
    lines = []
    for each in items(cluster, "deployments.apps", "app.kubernetes.io/component=api"):
        lines.append(f"{each['status'].get('availableReplicas', 0)} pods of the API keep serving")
    for pod in trace(cluster):
        if pod.current and pod.state not in ("Running", "Succeeded"):
            lines.append(f"{pod.pod}: {pod.state}: {last_words(cluster, pod.pod)}")
    return lines


def last_words(cluster: Cluster, pod: str) -> str:
    """What a pod that doesn't work logged or why it couldn't start, one line."""
    for more in ([], ["--previous"]):
        try:
            text = kubectl(cluster, "logs", "-n", NAMESPACE, pod, "--tail=5", *more).strip()
        except CouldNotVerifyError:
            continue
        if text:
            return one_line(_message(text.splitlines()[-1]))
    events = kubectl(
        cluster,
        *("get", "events", "-n", NAMESPACE, "--field-selector", f"involvedObject.name={pod},type=Warning"),
        *("-o", "jsonpath={.items[*].message}"),
    )
    return one_line(events)[:300] or "it logged nothing"


def _message(line: str) -> str:
    try:
        parsed: Mapping[str, object] = json.loads(line)
        return f"{parsed['level']} {parsed['message']}"
    except (ValueError, KeyError, TypeError):
        return line


def rollback(service: Service, to: str | None = None, *, timeout_s: float = TIMEOUT_S) -> int:
    """Makes an earlier desired state the newest commit and releases it; returns the exit code.

    Args:
        to: a commit or tag of the deploy repository; None: the last one whose smoke passed and that differs from now.

    Raises:
        ConfigError: there is no such commit.
        RefusedError: the operator said no, there is nothing to go back to, or a sync is under way.
        CouldNotVerifyError: cluster or repository don't answer, or it takes too long.
    """
    now, repository = argocd.refresh(service.cluster), service.repository
    head = repository.head
    goal = repository.commit(to) if to else choose(repository, service.environment, now)
    if repository.same_tree(goal.hash, head) and now.attempted == head and now.operation == SUCCEEDED:
        raise RefusedError(f"{goal.hash[:12]} is what runs", "name another commit: `minipc release rollback COMMIT`")
    changes = difference(_objects(service, now, head), _objects(service, now, goal.hash), ("now", "back to"))
    service.say(changes.rstrip())
    service.say(f"now      {repository.commit(head)}")
    service.say(f"back to  {goal}")
    if not service.ask(f"Roll {service.environment} back to {goal.hash[:12]}?"):
        raise RefusedError("not rolled back: you said no", "`minipc release status`")
    if repository.same_tree(goal.hash, head):
        made = head
    else:
        made = repository.restore(goal.hash, f"Roll back to {goal.hash[:12]}: {goal.subject}")
    return release(service, argocd.refresh(service.cluster), repository.commit(made), timeout_s)


def choose(repository: Repository, environment: str, now: Application) -> Commit:
    """The last desired state that was released and is not the one that runs or was tried last.

    Raises:
        RefusedError: there is none.
    """
    current = now.attempted or repository.head
    for commit in _known(repository, environment, now.history):
        if not repository.same_tree(commit.hash, current):
            return commit
    raise RefusedError(
        "no earlier release is known that differs from what runs", "name a commit: `minipc release rollback COMMIT`"
    )


def _known(repository: Repository, environment: str, history: Sequence[argocd.Release]) -> list[Commit]:
    """Released states, newest first. The repository's tags outlive the cluster, ArgoCD's own history doesn't."""
    found = repository.released(environment)
    if found:
        return found
    known = []
    for each in reversed(history):
        try:
            known.append(repository.commit(each.revision))
        except MinipcError:
            continue  # history was rewritten
    return known


def show_trace(service: Service, what: str | None, domain: str, subject: Callable[[str], str]) -> int:
    """Says where pods come from; returns the exit code: 1 when one runs another image than desired state names.

    Args:
        what: a pod, an address of the service, or None for all pods.
        domain: the service's public name.
        subject: the first line of a commit of the code, empty when it is not known here.

    Raises:
        ConfigError: there is no such pod, or the address is not the service's.
        CouldNotVerifyError: cluster or repository don't answer.
    """
    pod, say = what, service.say
    if what and "/" in what:
        pod, request = answering(service.cluster, what, domain)
        say(f"answered by {pod}, request {request}")
    found = trace(service.cluster, pod)
    now = argocd.read(service.cluster)
    for origin, pods in _by_origin(found).items():
        commit, image, digest, runs = origin
        sign = SIGNS["pass"] if runs == digest else SIGNS["fail"] if runs else "…"
        say(f"{sign} commit   {commit[:12]}  {subject(commit)}".rstrip())
        say(f"  image    {image}")
        say(f"  digest   {digest}" + ("" if runs == digest else f", but it runs {runs or 'nothing'}"))
        for each in pods:
            rollout = f", rollout {each.rollout} of {each.component}" if each.rollout else ""
            replaced = "" if each.current else ", being replaced"
            say(f"    {each.pod}  {each.state} since {each.started}{rollout}{replaced}")
    revision = desired_state(now, found)
    if revision:
        repository = service.repository
        say(f"desired state  {repository.commit(revision)}")
        changed = repository.last_change(f"{now.path}/release", revision)
        say(f"  release set  {changed} ({changed.author})")
        say(f"  last sync    {now.operation} at {now.operation_started} by {now.operation_by}")
    return EXIT_FAIL if any(each.runs and not each.as_stated for each in found) else EXIT_PASS


def _by_origin(found: Sequence[Traced]) -> dict[tuple[str, str, str, str], list[Traced]]:
    """Pods of one release together: commit, image, digest as stated, digest as it runs."""
    groups: dict[tuple[str, str, str, str], list[Traced]] = {}
    for each in found:
        groups.setdefault((each.commit, each.image, each.digest, each.runs), []).append(each)
    return groups
