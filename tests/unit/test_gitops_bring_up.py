"""Whether a rebuild releases each service: only what runs as it was approved is left alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minipc.core.environment import LAB
from minipc.core.errors import MinipcError, RefusedError
from playbooks import gitops
from tests.unit.gitops_cluster import SHOP
from tests.unit.service_files import TINY, service

HEAD = "c" * 40
OTHER = service(TINY)


def target(*services):
    return SimpleNamespace(settings=SimpleNamespace(services=SimpleNamespace(declared=services)))


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets what is approved and what runs; it returns the list of what is released."""

    def make(approved, deployed="", health="Missing", sync="OutOfSync", failing=()):
        releases = []

        def admit(name):
            if name in failing:
                raise RefusedError(f"nobody has signed it for {name}")
            return HEAD

        # No `head`: what is newest in the repository is nothing that a rebuild looks at.
        repository = SimpleNamespace(
            admit_approved=admit,
            commit=lambda hash_: SimpleNamespace(hash=hash_),
            trust=SimpleNamespace(approvals=SimpleNamespace(commits=lambda: dict.fromkeys(approved, HEAD))),
        )
        application = SimpleNamespace(deployed=deployed, health=health, sync=sync, path="x")
        monkeypatch.setattr(gitops, "SshCluster", lambda target: None)
        monkeypatch.setattr(gitops, "wait_for_application", lambda *_: application)
        monkeypatch.setattr(gitops.argocd_sync, "adopt", lambda *_: None)
        monkeypatch.setattr(gitops, "open_repository", lambda *_: repository)
        monkeypatch.setattr(gitops.release, "objects", lambda *_: [])
        monkeypatch.setattr(gitops.steps, "release", lambda context, service, *_: releases.append(service.name))
        return releases

    return make


@pytest.mark.parametrize(
    ("deployed", "health", "sync", "released"),
    [
        (HEAD, "Healthy", "Synced", False),
        # The rebuild has scaled its deployments to nothing.
        (HEAD, "Healthy", "OutOfSync", True),
        (HEAD, "Degraded", "Synced", True),
        ("", "Missing", "OutOfSync", True),
    ],
)
def test_what_does_not_run_as_it_was_approved_is_released(machine, deployed, health, sync, released):
    releases = machine(["shop"], deployed, health, sync)
    gitops.bring_up(LAB, target(SHOP))
    assert bool(releases) == released


def test_all_services_come_back_and_each_is_named(machine):
    releases = machine(["shop", "tiny"])
    text = gitops.bring_up(LAB, target(SHOP, OTHER))
    assert releases == ["shop", "tiny"]
    assert "shop: cccccccccccc is released, its smoke checks passed" in text
    assert "tiny: cccccccccccc is released, NOT EXERCISED: it declares no smoke checks" in text


def test_a_service_that_was_never_released_does_not_come_back(machine):
    releases = machine(["shop"])
    text = gitops.bring_up(LAB, target(OTHER, SHOP))
    assert releases == ["shop"]
    assert "tiny: NOT EXERCISED: no commit of it was ever approved" in text


def test_a_service_that_fails_does_not_keep_the_others_away(machine):
    releases = machine(["shop", "tiny"], failing=["shop"])
    with pytest.raises(RefusedError, match=r"shop: nobody has signed it for shop; tiny: c{12} is released"):
        gitops.bring_up(LAB, target(SHOP, OTHER))
    assert releases == ["tiny"]


def test_a_failed_release_says_what_was_said_last(machine, monkeypatch):
    machine(["shop"])

    def fail(context, *_):
        context.say("api-1: ImagePullBackOff: no such image")
        return 1

    monkeypatch.setattr(gitops.steps, "release", fail)
    with pytest.raises(MinipcError, match=r"shop: its release failed .*ImagePullBackOff: no such image"):
        gitops.bring_up(LAB, target(SHOP))


def test_a_machine_without_services_is_brought_up(machine):
    machine([])
    assert gitops.bring_up(LAB, target()) == "no services are declared"


def healed(monkeypatch, active="active", approved=(), objects=(), runtime="k3s"):
    """Return whether services are brought up when only these have objects in the cluster."""
    brought = []
    services = SimpleNamespace(declared=(SHOP, OTHER), runtime=runtime)
    machine = SimpleNamespace(settings=SimpleNamespace(services=services))
    approvals = SimpleNamespace(commits=lambda: dict.fromkeys(approved, HEAD))
    monkeypatch.setattr(gitops, "of_machine", lambda target: approvals)
    monkeypatch.setattr(gitops, "SshCluster", lambda target: SimpleNamespace(run=lambda command: f"{active}\n"))
    monkeypatch.setattr(gitops, "items", lambda cluster, kinds, name: ["web"] if name in objects else [])
    monkeypatch.setattr(gitops, "bring_up", lambda *_: brought.append(True) or "released")
    text = gitops.heal(LAB, machine)
    assert bool(text) == bool(brought)
    return bool(brought)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"approved": ["shop", "tiny"], "objects": ["shop"]}, True),
        ({"approved": ["shop", "tiny"], "objects": ["shop", "tiny"]}, False),
        # Never released, so it is not missed.
        ({"approved": ["shop"], "objects": ["shop"]}, False),
        ({"approved": [], "objects": []}, False),
        ({"approved": ["shop"], "active": "activating"}, False),
        ({"approved": ["shop"], "runtime": "podman"}, False),
    ],
)
def test_an_approved_service_that_is_gone_comes_back(monkeypatch, state, expected):
    assert healed(monkeypatch, **state) == expected
