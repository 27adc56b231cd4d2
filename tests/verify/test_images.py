"""Checks of the container image files that K3s imports, or that podman has loaded."""

from __future__ import annotations

import shlex

import pytest

from minipc.pyinfra_ext.facts.images import K3S_IMAGES as IMAGES
from minipc.pyinfra_ext.facts.images import NAMES
from minipc.pyinfra_ext.facts.podman import IMAGES as LOADED
from minipc.services.images import ON_MACHINE as UNDER_PODMAN
from tests.verify.conftest import not_exercised


@pytest.fixture(scope="session")
def in_k3s(settings, sh):
    """Skip as NOT EXERCISED where K3s does not run, or has no image files."""
    if settings.services.runtime != "k3s":
        not_exercised("services run under podman, without K3s")
    if not sh(f"find {IMAGES} -name '*.tar*' 2>/dev/null || true"):
        not_exercised("no image artifact is available")


@pytest.fixture(scope="session")
def imported(in_k3s, sh):
    return set(sh("k3s ctr --namespace k8s.io images list --quiet 2>/dev/null").splitlines())


def test_nobody_but_root_writes_them(settings, sh):
    """Only root can write the container image files."""
    folder = IMAGES if settings.services.runtime == "k3s" else UNDER_PODMAN
    if not sh(f"find {folder} -name '*.tar*' 2>/dev/null || true"):
        not_exercised("there are no container image files")
    assert sh(f"find {folder} ! -user root -o -perm /022 ! -type l") == ""


def test_podman_has_the_image_of_each_service(settings, sh):
    """Podman has loaded an image for each service whose image file is on the machine."""
    if settings.services.runtime == "k3s":
        not_exercised("services run in K3s, not under podman")
    files = sh(f"ls {UNDER_PODMAN}/*/released 2>/dev/null || true").split()
    if not files:
        not_exercised("there are no container image files")
    names = {file.split("/")[-2] for file in files}
    loaded = sh("PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman images --format '{{.Repository}}'").split()
    assert {f"{LOADED}/{name}" for name in names} <= set(loaded)


def test_k3s_own_are_imported(imported):
    """The images that K3s itself needs are imported.

    Without the pause image no pod starts; without CoreDNS no pod can resolve a name.
    """
    for name in ("mirrored-pause", "mirrored-coredns"):
        assert [image for image in imported if name in image], imported


def test_all_others_are_imported(sh, imported):
    """All other container images on disk are imported."""
    files = sh(f"find {IMAGES} -name '*.tar'").split()
    if not files:
        not_exercised("only K3s's own images are available")
    named = set(sh(f"python3 -c {shlex.quote(NAMES)} {' '.join(files)}").split())
    assert named
    assert named <= imported
