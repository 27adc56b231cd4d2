"""Create the deploy repository: what it needs, and its first commit, signed and approved."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc import artifacts
from minipc.config.service import Service
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError, RefusedError
from minipc.gitops import deploy_files, signing
from minipc.gitops.argocd_manifest import PATH, render
from minipc.gitops.deploy_files import Version
from minipc.gitops.hosted_repository import BRANCH, Remote, address_of, operator_remote
from minipc.gitops.policy import ROOT
from minipc.gitops.repository import Repository, trust_of
from minipc.remote.inventory import Target
from minipc.remote.queries import architecture
from minipc.services import images, registry, signatures
from minipc.services.images import ServiceImage
from playbooks import argocd_sync

NEEDED = ("k3s", "k3s-images", "argocd-manifest", "argocd-images")
START = "Start"


def missing() -> list[str]:
    """Return the artifacts that K3s needs and that are not in the cache. Nothing is fetched."""
    arch = artifacts.own_arch()
    found = (artifacts.resolve(name, arch, fetch=False) for name in NEEDED)
    return [each.name for each in found if each.origin == "missing"]


def runs_in_k3s(wanted: str) -> bool:
    """Return whether a rehearsal uses K3s.

    Args:
        wanted: "k3s", "podman" (or "stand-in", its old name), or "auto": K3s if its artifacts are in the cache.

    Raises:
        MinipcError: K3s was asked for, and an artifact is missing.
    """
    lacking = missing() if wanted not in ("podman", "stand-in") else []
    if lacking and wanted == "k3s":
        raise MinipcError(
            f"K3s cannot be rehearsed; not in the cache: {', '.join(lacking)}",
            f"run `minipc artifacts fetch {lacking[0]}`",
        )
    return wanted not in ("podman", "stand-in") and not lacking


@contextmanager
def opened(target: Target, offsite: Target | None) -> Iterator[Repository]:
    """Provide a clone of the deploy repository, as the operator reaches it, while the block runs.

    Raises:
        ConfigError: no repository is configured.
        CouldNotVerifyError: it cannot be reached.
    """
    url = address_of(target, offsite)
    if url is None:
        raise ConfigError("there is no deploy repository", "add an off-site host, or set argocd_repository")
    hosted = target.settings.argocd.repository is None
    remote = operator_remote(offsite) if offsite and hosted else Remote(url, {})
    branch = BRANCH if hosted else target.settings.argocd.revision
    with tempfile.TemporaryDirectory(prefix="minipc-deploy-") as directory:
        yield Repository(remote.url, Path(directory), branch, trust_of(target), remote.environment)


def fill(target: Target, offsite: Target | None, *, replace: bool = True) -> str:
    """Fill a deploy repository with the declared services, sign and approve it, and return the commit.

    Everything in it follows from the service files. A service without an image is in it and not approved, so that it is
    not released: `minipc service image` says what is missing.

    Args:
        offsite: the off-site host; None: there is none.
        replace: whether a repository that has commits is filled again. Otherwise an approved one stays as it is.

    Raises:
        ConfigError: no repository is configured.
        RefusedError: it has commits that nobody approved.
        MinipcError: an image cannot be built, or the repository cannot be written.
    """
    environment = target.settings.where
    signing.prepare(environment)
    with opened(target, offsite) as repository:
        trust, url = repository.trust, address_of(target, offsite) or ""
        if not replace and repository.has_branch():
            approved = trust.approvals.commits().get(ROOT, "")
            if approved and repository.has(approved):
                return repository.head
            # Ours, if an earlier attempt ended between push and approval; it is compared below.
            if repository.commit(repository.head).subject != START:
                raise RefusedError(
                    f"the deploy repository {url} has commits that nobody approved",
                    "`minipc release pin` shows them and asks; then run the same command again",
                )
        manifest = artifacts.resolve("argocd-manifest", artifacts.own_arch(), fetch=False)
        if manifest.path is None:
            raise CouldNotVerifyError(f"{manifest}", "`minipc artifacts fetch argocd-manifest`")
        services = target.settings.services.declared
        versions = {each.name: found for each in services if (found := _version(each, target))}
        branch, own = repository.branch, {PATH: render(manifest.path)}
        files = deploy_files.whole(services, environment.name, url, branch, versions, own)
        commit = repository.replace(files, START)
    trust.approvals.approve((*argocd_sync.APPLICATIONS, *versions), commit)
    return commit


def _version(service: Service, target: Target) -> Version | None:
    """Return the version for a first release: the image that was added or built, else `latest` in its registry.

    An image with a signer comes from its registry only, and its signature is verified.
    """
    image = None if service.image_signer else images.ensure(service)
    if isinstance(image, ServiceImage):
        return deploy_files.of_image(image)
    if service.build is not None or target.settings.where.disposable:
        return None
    digest = registry.digest_of(target.settings, service.image, "latest", architecture(target))
    signatures.verifier(target.settings)(service, f"{service.image}@{digest}")
    return Version(service.image, "", digest, "latest")
