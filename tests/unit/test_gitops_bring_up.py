"""Whether a rebuild releases the service: only what runs as Git says is left alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from playbooks import gitops

HEAD = "c" * 40


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
def test_what_does_not_run_as_git_says_is_released(monkeypatch, deployed, health, sync, released):
    releases = []
    application = SimpleNamespace(deployed=deployed, health=health, sync=sync)
    repository = SimpleNamespace(head="main", commit=lambda _: SimpleNamespace(hash=HEAD))
    monkeypatch.setattr(gitops, "SshCluster", lambda target: None)
    monkeypatch.setattr(gitops, "_wait_for_application", lambda *_: application)
    monkeypatch.setattr(gitops.argocd_sync, "adopt", lambda cluster: None)
    monkeypatch.setattr(gitops, "open_repository", lambda *_: repository)
    monkeypatch.setattr(gitops.release, "release", lambda *_: releases.append(HEAD))
    gitops.bring_up("lab", SimpleNamespace())
    assert bool(releases) == released
