"""Which commit this checkout is."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from minipc.paths import ROOT
from minipc.variables import COMMIT_VARIABLE


@dataclass(frozen=True)
class Commit:
    """Attributes:
    commit: 40 hex digits, or "unknown" outside a git checkout.
    dirty: whether tracked files differ from it.
    """

    commit: str
    dirty: bool


def head() -> Commit:
    """The commit that is checked out, or the one that the run began with (`MINIPC_COMMIT`)."""
    if COMMIT_VARIABLE in os.environ:
        pinned, _, mark = os.environ[COMMIT_VARIABLE].partition("+")
        return Commit(pinned, dirty=bool(mark))
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return Commit("unknown", dirty=True)
    return Commit(commit, dirty)


def pin_head() -> None:
    """Every process started from here sees the same commit, also when someone commits while a run goes on."""
    commit = head()
    os.environ[COMMIT_VARIABLE] = f"{commit.commit}{'+dirty' if commit.dirty else ''}"


def _git(*argv: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *argv], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()


def subject(commit: str) -> str:
    """The first line of a commit's message; empty when this checkout doesn't have it."""
    try:
        return _git("log", "-1", "--format=%s", commit, "--")
    except (OSError, subprocess.SubprocessError):
        return ""
