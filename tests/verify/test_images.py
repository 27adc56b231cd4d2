"""Images: the files that K3s imports are there, nobody else's to write, and imported."""

from __future__ import annotations

import shlex

import pytest

from tests.verify.conftest import not_exercised

IMAGES = "/var/lib/rancher/k3s/agent/images"
NAMES = (
    "import json, sys, tarfile; "
    "[print(tag) for path in sys.argv[1:] for image in json.load(tarfile.open(path).extractfile('manifest.json')) "
    "for tag in image['RepoTags']]"
)


@pytest.fixture(scope="session", autouse=True)
def _is_here(settings, sh):
    if settings.workload.runtime != "k3s":
        not_exercised(f"the service runs as a {settings.workload.runtime}, without containers")
    if not sh(f"find {IMAGES} -name '*.tar*' 2>/dev/null || true"):
        not_exercised("no image artifact could be had")


@pytest.fixture(scope="session")
def imported(sh):
    return set(sh("k3s ctr --namespace k8s.io images list --quiet 2>/dev/null").splitlines())


def test_nobody_but_root_writes_them(sh):
    assert sh(f"find {IMAGES} ! -user root -o -perm /022 ! -type l") == ""


def test_k3s_own_are_imported(imported):
    """Without the pause image no pod starts; without CoreDNS none finds another."""
    for name in ("mirrored-pause", "mirrored-coredns"):
        assert [image for image in imported if name in image], imported


def test_all_others_are_imported(sh, imported):
    files = sh(f"find {IMAGES} -name '*.tar'").split()
    if not files:
        not_exercised("only K3s's own images could be had")
    named = set(sh(f"python3 -c {shlex.quote(NAMES)} {' '.join(files)}").split())
    assert named
    assert named <= imported
