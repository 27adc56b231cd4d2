"""The steps of a release: migrate, try one pod of the new version, switch to it, and check it as users reach it.

Nothing of what serves is changed before the new version has passed its smoke checks in a separate pod.
"""

from __future__ import annotations

import datetime
import getpass
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from minipc.config.service import Service
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, CouldNotVerifyError, MinipcError
from minipc.core.formatting import count, one_line
from minipc.core.verdicts import SIGNS
from minipc.gitops import admitted_images, node_images, smoke, trial
from minipc.gitops import application as argocd
from minipc.gitops.application import HEALTHY, SUCCEEDED, SYNCED, Application, Step
from minipc.gitops.cluster import COMPONENT, Cluster, Object, items, label, meta
from minipc.gitops.pods import Diagnosis, causes, newer_than
from minipc.gitops.repository import Commit, Repository
from minipc.gitops.trace import trace
from minipc.services.signatures import Verify

Say = Callable[[str], None]
Ask = Callable[[str], bool]

TIMEOUT_S = 900
PAUSE_S = 1.0
# How long ArgoCD may take to end a sync that it was asked to end.
STOP_S = 30


class BrokenError(MinipcError):
    """A pod of the new version does not run, and waiting would not help."""


def _cannot_verify(service: Service, reference: str) -> None:
    if service.image_signer:
        raise CouldNotVerifyError(f"the signature of {reference} cannot be verified here", "this is a defect of minipc")


@dataclass(frozen=True)
class Context:
    """What the procedures act on.

    Attributes:
        environment: the one that the cluster belongs to.
        cluster: where the services run.
        repository: where their desired state is.
        say: takes a line for the operator.
        ask: takes a question; whether the answer was yes.
        before: called with the service before anything of a new version runs; what it raises ends the release. Returns
            a line for the operator, empty if there is nothing to say.
        signed: verifies that an image was signed for a service whose file names a signer.
        after: called when a release has left the archive of its image on the machine; returns a line, too.
    """

    environment: Environment
    cluster: Cluster
    repository: Repository
    say: Say
    ask: Ask
    before: Callable[[Service], str] = lambda _: ""
    after: Callable[[], str] = lambda: ""
    signed: Verify = _cannot_verify

    def approved(self, application: str) -> str:
        """Return the commit of an application that a person approved last; empty if there is none."""
        return self.repository.trust.approvals.commits().get(application, "")


def release(
    context: Context,
    service: Service,
    before: Application,
    desired: Commit,
    wanted: Sequence[Object],
    *,
    trial_run: bool = True,
    timeout_s: float = TIMEOUT_S,
) -> int:
    """Bring a service to a commit that was admitted, without a question, and return the verdict as exit code.

    A commit that is released is the approved one from then on.

    Args:
        wanted: the objects of the commit.
        trial_run: migrate and try the version first. False for a version that was released before.

    Raises:
        RefusedError: a sync is under way, or an image is not signed with the key in the service file.
        CouldNotVerifyError: cluster or registry don't answer, or it takes too long.
    """
    say, short = context.say, desired.hash[:12]
    argocd.demand_idle(before)
    images = demand_signed(context, service, wanted, listed_count=not trial_run)
    admitted_images.admit(context.cluster, service, images)
    node_images.copy_missing(context.cluster, service, wanted, say)
    if trial_run and (line := context.before(service)):
        say(line)
    if trial_run and not try_out(context, service, wanted):
        say(f"{SIGNS['fail']} FAIL  {short} is not released: {_unchanged(context.cluster, service)}")
        say(f"  next: fix it with another commit, then `minipc release sync {service.name}`")
        if approved := context.approved(service.name) if before.deployed else "":
            say(f"  or take it back: `minipc release rollback {service.name} --to {approved[:12]}`")
        return EXIT_FAIL
    why = switch(context, service, before, desired, wanted, timeout_s)
    if not why and not _smoke(context, service, wanted):
        why = "a smoke check failed"
    if why:
        say(f"{SIGNS['fail']} FAIL  {short}: {why}")
        return EXIT_FAIL
    _mark(context, service, desired)
    approve(context, desired.hash, service.name)
    admitted_images.settle(context.cluster, service, images)
    _keep_image(context, service, wanted)
    found = sum(each.command is not None or service.ingress is not None for each in service.smoke)
    passed = f"; {count(found, 'smoke check')} passed" if found else "; it was not smoke tested"
    say(f"{SIGNS['pass']} PASS  {short} of {service.name} is released{passed}")
    return EXIT_PASS


def demand_signed(
    context: Context, service: Service, wanted: Sequence[Object], *, listed_count: bool = False
) -> list[str]:
    """Return the images of a release, all of them signed; nothing if the service file names no signer.

    Args:
        listed_count: what is in the cluster's list was verified with this key, and needs no registry. For what changes
            nothing, and for a rollback.

    Raises:
        RefusedError: an image is not named by its digest, or not signed with the key in the service file.
        MinipcError, CouldNotVerifyError: cluster or registry don't have it, or don't answer.
    """
    known = admitted_images.known(context.cluster, service) if listed_count else frozenset()

    def check(which: Service, reference: str) -> None:
        if reference not in known:
            context.signed(which, reference)

    return admitted_images.verify(service, wanted, check)


def ensure_admitted(context: Context, service: Service, wanted: Sequence[Object]) -> None:
    """Have the cluster admit what was released already: a signer is new in the service file, or the list is gone.

    Raises:
        RefusedError, MinipcError, CouldNotVerifyError: as `demand_signed`.
    """
    images = demand_signed(context, service, wanted, listed_count=True)
    if not admitted_images.known(context.cluster, service) >= set(images):
        admitted_images.settle(context.cluster, service, images)
        context.say(f"{SIGNS['pass']} {service.name}: the cluster admits {count(len(images), 'verified image')}")


def _keep_image(context: Context, service: Service, wanted: Sequence[Object]) -> None:
    """Keep the archive of what was released for a rebuild. Without it the release is no worse."""
    try:
        if node_images.keep_released(context.cluster, service, wanted) and (line := context.after()):
            context.say(line)
    except CouldNotVerifyError as error:
        context.say(f"NOT EXERCISED: the image is not in the backup: {error.what}")


def _unchanged(cluster: Cluster, service: Service) -> str:
    """Say what a release that failed before the switch leaves behind."""
    with suppress(CouldNotVerifyError):
        if not serving(cluster, service):
            return "nothing was deployed"
    return "the version before keeps serving, and users met nothing of this one"


def try_out(context: Context, service: Service, wanted: Sequence[Object]) -> bool:
    """Migrate, then check one pod of the new version; return whether both went well.

    Raises:
        RefusedError: another release of the service is under way.
        CouldNotVerifyError: the cluster doesn't answer.
    """
    say, cluster = context.say, context.cluster
    job = trial.migration(service, wanted)
    if job is not None:
        done = trial.run(cluster, service.name, job, say)
        say(f"{SIGNS['pass' if done.passed else 'fail']} migrate   {done.why}".rstrip())
        for line in () if done.passed else done.output:
            say(f"  | {line}")
        if not done.passed:
            return False
    if service.front is None or not serving(cluster, service):
        return True  # Nobody is served that a bad version could hurt: the checks follow the switch.
    if not trial.may_run_twice(service, wanted):
        say(f"{SIGNS['not-exercised']} canary    NOT EXERCISED: two versions at once would both write its SQLite files")
        return True
    with trial.canary(cluster, service, wanted, say) as found:
        if found is None:
            say(f"{SIGNS['fail']} canary    a pod of the new version does not become ready")
            return False
        say(f"{SIGNS['pass']} canary    a pod of the new version is ready; users do not reach it yet")
        return smoke.check(cluster, service, wanted, say, found.address, found.aliases)


def switch(
    context: Context,
    service: Service,
    before: Application,
    desired: Commit,
    wanted: Sequence[Object],
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Sync to a commit and wait until it runs; return why it does not, one line, or an empty text.

    Raises:
        RefusedError: a sync is under way.
        CouldNotVerifyError: the cluster doesn't answer, or it takes too long.
    """
    cluster, name = context.cluster, service.name
    diagnosis = Diagnosis(cluster, name, context.say)

    def watch(now: Application) -> None:
        lasting = diagnosis.look(newer_than(now.operation_started))
        if lasting:
            raise BrokenError(f"{lasting[0].pod}: {lasting[0].reason}")

    argocd.start(cluster, before, desired.hash, f"minipc release ({getpass.getuser()})", name)
    try:
        after = argocd.wait(
            cluster,
            before,
            timeout_s=timeout_s,
            show=lambda step: context.say(step_line(step)),
            name=name,
            watch=watch,
        )
        if after.operation != SUCCEEDED:
            _explain(context, service, after, diagnosis)
            return f"it is not released: {after.operation_message}"
        if other := argocd.other_revision(after, desired.hash):
            return f"the sync succeeded, but {other}"
        if why := _wait_for_pods(cluster, name, wanted, lambda: watch(after), timeout_s):
            _explain(context, service, after, diagnosis)
            return f"it is not released: {why}"
    except BrokenError as error:
        _end_sync(cluster, name)
        context.say(_who_serves(cluster, service))
        return f"it is not released: {error.what}"
    return _contradiction(context, service, desired)


def _wait_for_pods(
    cluster: Cluster, name: str, wanted: Sequence[Object], watch: Callable[[], None], timeout_s: float
) -> str:
    """Wait until all pods are replaced and ready; return why not, one line, or an empty text."""
    names = {str(meta(each)["name"]) for each in wanted if each.get("kind") == "Deployment"}
    give_up_at = time.monotonic() + timeout_s
    while True:
        with suppress(CouldNotVerifyError):
            live = [each for each in items(cluster, "deployments.apps", name) if meta(each)["name"] in names]
            states = [rollout(each) for each in live]
            if failed := [each for each in states if each]:
                return failed[0]
            if len(live) == len(names) and None not in states:
                return ""
            watch()
        if time.monotonic() > give_up_at:
            return f"not all pods are ready after {timeout_s:.0f} s"
        time.sleep(PAUSE_S)


def rollout(deployment: Object) -> str | None:
    """Return "" if all pods of a Deployment are of the newest version and ready, why it failed, or None meanwhile."""
    spec, status, data = deployment["spec"], deployment.get("status", {}), meta(deployment)
    if status.get("observedGeneration", 0) < data.get("generation", 0):
        return None
    for each in status.get("conditions") or []:
        if each["type"] == "Progressing" and each.get("reason") == "ProgressDeadlineExceeded":
            return f"Deployment {data['name']} exceeded its progress deadline"
        if each["type"] == "ReplicaFailure" and each["status"] == "True":
            return f"Deployment {data['name']}: {one_line(str(each.get('message', '')))}"
    replicas = spec.get("replicas", 1)
    found = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    return "" if found == [replicas] * 3 else None


def _contradiction(context: Context, service: Service, desired: Commit) -> str:
    """Return what contradicts a sync that reports success; empty if nothing does, or if somebody pushed meanwhile."""
    give_up_at = time.monotonic() + STOP_S
    while True:
        now = argocd.refresh(context.cluster, service.name)
        if now.seen != desired.hash or (now.sync == SYNCED and now.health == HEALTHY):
            return ""
        if time.monotonic() > give_up_at or now.health not in ("Progressing", "Missing", "Unknown"):
            return f"the sync succeeded, but the cluster is {now.sync} and {now.health}"
        time.sleep(PAUSE_S)


def _smoke(context: Context, service: Service, wanted: Sequence[Object]) -> bool:
    """Check the service as the ingress reaches it; say by name if there is nothing to check."""
    if missing := smoke.not_declared(service):
        context.say(missing)
    address = smoke.through_the_service(service)
    return smoke.check(context.cluster, service, wanted, context.say, address)


def _explain(context: Context, service: Service, after: Application, diagnosis: Diagnosis) -> None:
    """Say why a sync failed: its objects, the pods of the newest version that do not run, and who serves."""
    for line in [*map(step_line, after.failed_steps), *after.problems]:
        context.say(line)
    known = {each.pod for each in diagnosis.shown}
    with suppress(CouldNotVerifyError):
        new = {each.pod for each in trace(context.cluster, service.name) if each.current} - known
        for cause in causes(context.cluster, service.name, lambda pod: meta(pod)["name"] in new):
            for line in cause.lines:
                context.say(line)
        context.say(_who_serves(context.cluster, service))


def _who_serves(cluster: Cluster, service: Service) -> str:
    number = serving(cluster, service)
    if service.front is None:
        return "no process of it is behind the ingress"
    return (
        f"{count(number, 'pod')} of the process {service.front[0]!r} {'serves' if number == 1 else 'serve'} users now"
    )


def serving(cluster: Cluster, service: Service) -> int:
    """Return how many pods of the front process are ready. Raises CouldNotVerifyError."""
    if service.front is None:
        return 0
    found = [each for each in items(cluster, "deployments.apps", service.name) if _is(each, service.front[0])]
    return sum(each.get("status", {}).get("availableReplicas", 0) for each in found)


def _is(deployment: Object, process: str) -> bool:
    return label(deployment["spec"]["template"], COMPONENT) == process


def _end_sync(cluster: Cluster, name: str) -> None:
    """End the sync that is under way, so that the next one can start; it may be over by itself."""
    with suppress(CouldNotVerifyError):
        if argocd.read(cluster, name).running:
            argocd.stop(cluster, name)
            argocd.wait_idle(cluster, name, STOP_S)


def step_line(step: Step) -> str:
    """Return an object of a sync, and what became of it, for a person."""
    sign = SIGNS["fail"] if step.failed else SIGNS["pass"] if step.state in (SYNCED, SUCCEEDED) else "…"
    return f"{sign} {step.phase:9} {step.name:24} {step.state:10} {step.message}".rstrip()


def approve(context: Context, commit: str, *names: str) -> None:
    """Remember a commit as the approved one of these applications, and say where, if it is another than before."""
    approvals = context.repository.trust.approvals
    if {approvals.commits().get(each) for each in names} == {commit}:
        return
    approvals.approve(names, commit)
    if context.environment.in_repository:
        context.say(f"commit and push inventory/{approvals.path.name}: a rebuild syncs exactly {commit[:12]}")


def _mark(context: Context, service: Service, desired: Commit) -> None:
    """Tag the release, so that a rollback finds it. Without the tag only the cluster remembers the release."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        context.repository.mark_released(context.environment.name, service.name, desired.hash, f"{now:%Y%m%dT%H%M%SZ}")
    except CouldNotVerifyError as error:
        context.say(f"the tag could not be created: {error.what}")
