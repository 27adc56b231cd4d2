"""Read commit and version of this checkout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import distribution, version
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.paths import ROOT
from minipc.core.process import call
from minipc.core.variables import COMMIT_VARIABLE


@dataclass(frozen=True)
class Commit:
    """Attributes:
    commit: 40 hex digits, or "unknown" outside a git checkout.
    dirty: whether tracked files differ from it.
    """

    commit: str
    dirty: bool


def head() -> Commit:
    """Return the commit that is checked out, or the one that the run began with (`MINIPC_COMMIT`)."""
    if COMMIT_VARIABLE in os.environ:
        pinned, _, mark = os.environ[COMMIT_VARIABLE].partition("+")
        return Commit(pinned, dirty=bool(mark))
    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except MinipcError:
        return Commit("unknown", dirty=True)
    return Commit(commit, dirty)


def version_line() -> str:
    """Return version and commit of this checkout, or of the installed package when there is no checkout."""
    found = head() if (ROOT / ".git").exists() else Commit(_installed_commit(), dirty=False)
    changes = " with changes" if found.dirty else ""
    return f"minipc {version('minipc')}, commit {found.commit[:12]}{changes}"


def _installed_commit() -> str:
    """Return the commit that the wheel was built from (hatch_build.py), or "unknown"."""
    return (distribution("minipc").read_text("extra_metadata/commit") or "unknown").strip()


def pin_head() -> None:
    """Make every process that is started from here use the same commit, even if someone commits during the run."""
    commit = head()
    os.environ[COMMIT_VARIABLE] = f"{commit.commit}{'+dirty' if commit.dirty else ''}"


def git(*argv: str, directory: Path = ROOT, timeout_s: float = 20) -> str:
    """Run git in a checkout and return what it prints, without white space at the end. Raises MinipcError."""
    return call("git", "-C", str(directory), *argv, timeout=timeout_s).rstrip()


def subject(commit: str) -> str:
    """Return the first line of a commit's message; empty if this checkout does not have it."""
    try:
        return git("log", "-1", "--format=%s", commit, "--")
    except MinipcError:
        return ""
