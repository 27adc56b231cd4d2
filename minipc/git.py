"""Which commit this checkout is."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from minipc.paths import ROOT


@dataclass(frozen=True)
class Commit:
    """Attributes:
    commit: 40 hex digits, or "unknown" outside a git checkout.
    dirty: whether tracked files differ from it.
    """

    commit: str
    dirty: bool


def head() -> Commit:
    """The commit that is checked out."""
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return Commit("unknown", dirty=True)
    return Commit(commit, dirty)


def _git(*argv: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *argv], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
