"""The deploy repository of a rehearsal, and the release that brings the service up where it runs in K3s."""

from __future__ import annotations

import time

from minipc import artifacts
from minipc.argocd.manifest import render
from minipc.deploy_repository import commit_tree, hosted_url, operator_remote, starting_point
from minipc.errors import CouldNotVerifyError, MinipcError
from minipc.gitops import application as argocd
from minipc.gitops.cluster import APPLICATION, SshCluster
from minipc.gitops.repository import open_repository
from minipc.inventory import Environment, Target
from minipc.workload import image as images
from minipc.workload import oci
from playbooks import argocd_sync, release

NEEDED = ("k3s", "k3s-images", "argocd-manifest", "argocd-images")
# A slow machine starts ArgoCD in two minutes.
APPLICATION_TIMEOUT_S = 300


def missing() -> list[str]:
    """Why K3s can't be exercised on this controller: the artifacts that are not in its cache. Fetches nothing."""
    arch = artifacts.own_arch()
    found = (artifacts.resolve(name, arch, fetch=False) for name in NEEDED)
    return [each.name for each in found if each.origin == "missing"]


def runs_in_k3s(wanted: str) -> bool:
    """Whether a rehearsal uses K3s. Raises MinipcError when it was asked for and can't be had.

    Args:
        wanted: "k3s", "stand-in", or "auto": K3s where its artifacts are.
    """
    lacking = missing() if wanted != "stand-in" else []
    if lacking and wanted == "k3s":
        raise MinipcError(
            f"K3s can't be rehearsed: not in the cache: {', '.join(lacking)}", f"minipc artifacts fetch {lacking[0]}"
        )
    return wanted != "stand-in" and not lacking


def fill(target: Target, offsite: Target) -> str:
    """Has the lab's deploy repository say that the service of this checkout runs; returns the commit.

    Raises:
        MinipcError: the image can't be built, or the repository can't be written.
    """
    manifest = artifacts.resolve("argocd-manifest", artifacts.own_arch(), fetch=False)
    image = images.ensure()
    if manifest.path is None or image.path is None:
        raise MinipcError(f"{manifest if manifest.path is None else image}", "minipc artifacts list")
    address = offsite.data.get("offsite_address") or offsite.data["ssh_hostname"]
    url = hosted_url(address, target.settings.offsite.sftp_port)
    files = starting_point(url, render(manifest.path), oci.read(image.path))
    return commit_tree(operator_remote(offsite), files, "Start")


def bring_up(environment: Environment, target: Target) -> str:
    """Has ArgoCD sync the newest desired state, smoke included; returns what runs then, one line.

    Raises:
        MinipcError: the release failed.
        CouldNotVerifyError: cluster or repository don't answer in time.
    """
    cluster = SshCluster(target)
    for name in argocd_sync.APPLICATIONS:
        _wait_for_application(cluster, name)
    argocd_sync.adopt(cluster)
    application = _wait_for_application(cluster)
    said: list[str] = []
    service = release.Service(
        environment=environment,
        cluster=cluster,
        repository=open_repository(target, application),
        say=said.append,
        ask=lambda _: True,
    )
    desired = service.repository.commit(service.repository.head)
    # Where a rebuild has stopped the writers, the version is right and nothing runs: healthy, but not synced.
    as_desired = (application.deployed, application.health, application.sync)
    if as_desired == (desired.hash, argocd.HEALTHY, argocd.SYNCED):
        return f"{desired.hash[:12]} ran already"
    if release.release(service, application, desired):
        raise MinipcError(f"the release failed: {'; '.join(said[-4:])}", "`minipc release status` shows why")
    return f"{desired.hash[:12]} is released, its smoke passed"


def _wait_for_application(cluster: SshCluster, name: str = APPLICATION) -> argocd.Application:
    give_up_at = time.monotonic() + APPLICATION_TIMEOUT_S
    while True:
        try:
            return argocd.refresh(cluster, name)
        except CouldNotVerifyError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(2)
