"""The first release of a rebuilt machine: ArgoCD brings all services up where they run in K3s."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from minipc.config.service import Service
from minipc.core.environment import Environment
from minipc.core.errors import CouldNotVerifyError, MinipcError
from minipc.gitops import application as argocd
from minipc.gitops.approvals import of_machine
from minipc.gitops.cluster import Cluster, SshCluster, items
from minipc.gitops.repository import open_repository
from minipc.remote.inventory import Target
from minipc.services.signatures import verifier
from playbooks import argocd_sync, release
from playbooks import release_steps as steps

# A slow machine starts ArgoCD in two minutes.
APPLICATION_TIMEOUT_S = 300
AT_ONCE = 3


def bring_up(environment: Environment, target: Target) -> str:
    """Have ArgoCD sync exactly what a person approved last of each service, checks included; say what runs, one line.

    A service that fails does not keep the others from coming back.

    Raises:
        RefusedError: nothing was approved, or what was is not in the repository, or nobody who may sign has signed it.
        MinipcError: a release failed.
        CouldNotVerifyError: cluster or repository don't answer in time.
    """
    cluster = SshCluster(target)
    found = [wait_for_application(cluster, name) for name in argocd_sync.APPLICATIONS]
    repository = open_repository(target, found[-1])
    argocd_sync.adopt(cluster, repository)

    signed = verifier(target.settings)

    def come_back(service: Service) -> str | MinipcError:
        said: list[str] = []
        context = steps.Context(environment, cluster, repository, said.append, lambda _: False, signed=signed)
        try:
            return f"{service.name}: {_bring_up(context, service)}"
        except MinipcError as error:
            return _named(error, service, said)

    # Most of the time is spent waiting for pods.
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        results = list(pool.map(come_back, target.settings.services.declared))
    done = [each for each in results if isinstance(each, str)]
    failed = [each for each in results if isinstance(each, MinipcError)]
    if failed:
        what = "; ".join([*(each.what for each in failed), *done])
        raise type(failed[0])(what, failed[0].next_step)
    return "; ".join(done) or "no services are declared"


def heal(environment: Environment, target: Target) -> str:
    """Release approved services again whose objects are gone from the cluster; say which. Empty if none is gone.

    That is so when a namespace was deleted by hand, and after `minipc cluster reset`.

    Raises:
        MinipcError: as `bring_up`.
    """
    settings = target.settings
    if settings.services.runtime != "k3s":
        return ""
    approved, cluster = of_machine(target).commits(), SshCluster(target)
    wanted = [each.name for each in settings.services.declared if each.name in approved]
    if cluster.run("systemctl is-active k3s || true").strip() != "active":
        # The verification says so.
        return ""
    gone = [name for name in wanted if not items(cluster, "deployments,cronjobs", name)]
    return bring_up(environment, target) if gone else ""


def _named(error: MinipcError, service: Service, said: list[str]) -> MinipcError:
    """Return the error with the service's name, and what was said last where the error alone does not explain it."""
    more = f" ({'; '.join(said[-4:])})" if said and type(error) is MinipcError else ""
    return type(error)(f"{service.name}: {error.what}{more}", error.next_step)


def _bring_up(context: steps.Context, service: Service) -> str:
    repository = context.repository
    if not context.approved(service.name):
        return "NOT EXERCISED: no commit of it was ever approved"
    application = wait_for_application(context.cluster, service.name)
    desired = repository.commit(repository.admit_approved(service.name))
    # Where a rebuild has stopped the writers, the version is right and nothing runs: healthy, but not synced.
    as_desired = (application.deployed, application.health, application.sync)
    if as_desired == (desired.hash, argocd.HEALTHY, argocd.SYNCED):
        if service.image_signer:
            steps.ensure_admitted(context, service, release.objects(context, application.path, desired.hash))
        return f"{desired.hash[:12]} ran already"
    wanted = release.objects(context, application.path, desired.hash)
    if steps.release(context, service, application, desired, wanted):
        raise MinipcError("its release failed", f"`minipc release status {service.name}` shows why")
    checked = "its smoke checks passed" if service.smoke else "NOT EXERCISED: it declares no smoke checks"
    return f"{desired.hash[:12]} is released, {checked}"


def wait_for_application(cluster: Cluster, name: str) -> argocd.Application:
    """Return an application as ArgoCD sees it now. Raises CouldNotVerifyError if it does not answer in time."""
    give_up_at = time.monotonic() + APPLICATION_TIMEOUT_S
    while True:
        try:
            return argocd.refresh(cluster, name)
        except CouldNotVerifyError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(2)
