"""Ask git about a checkout: its remote, and what a clone of that remote would lack."""

from __future__ import annotations

import re
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.git import git


def remote(checkout: Path) -> str:
    """Return the address of the remote that the branch follows, else of `origin`, without credentials; or ""."""
    upstream = _git(checkout, "rev-parse", "--abbrev-ref", "@{upstream}") or ""
    name = upstream.partition("/")[0] or "origin"
    url = _git(checkout, "remote", "get-url", name) or ""
    return re.sub(r"^([a-z+]+://)[^/@]*@", r"\1", url)


def commit(checkout: Path) -> str:
    """Return the commit that is checked out: 40 hex digits, or "unknown"."""
    return _git(checkout, "rev-parse", "HEAD") or "unknown"


def is_pushed(checkout: Path) -> bool:
    """Return whether a remote branch has the commit, according to the last fetch or push."""
    return bool(_git(checkout, "branch", "--remotes", "--contains", "HEAD"))


def changed_paths(checkout: Path) -> list[str]:
    """Return files that differ from the commit, and untracked files except ignored ones."""
    status = _git(checkout, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames") or ""
    return sorted(line[3:] for line in status.split("\0") if line)


def is_unmodified(checkout: Path, path: str) -> bool:
    """Return whether git has the file exactly as on disk, so that replacing it loses nothing."""
    tracked = _git(checkout, "ls-files", "--error-unmatch", "--", path)
    return bool(tracked) and _git(checkout, "diff", "--quiet", "HEAD", "--", path) is not None


def _git(checkout: Path, *argv: str) -> str | None:
    """Return the output of git; None if it failed or is not installed."""
    try:
        return git(*argv, directory=checkout)
    except MinipcError:
        return None
