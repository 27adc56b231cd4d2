"""What git says about a checkout: where it came from, and what a clone elsewhere would not have."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_TIMEOUT_S = 20


def remote(checkout: Path) -> str:
    """Address of the remote that the branch follows, else of `origin`, without user and password; or ""."""
    upstream = _git(checkout, "rev-parse", "--abbrev-ref", "@{upstream}") or ""
    name = upstream.partition("/")[0] or "origin"
    url = _git(checkout, "remote", "get-url", name) or ""
    return re.sub(r"^([a-z+]+://)[^/@]*@", r"\1", url)


def commit(checkout: Path) -> str:
    """The commit that is checked out: 40 hex digits, or "unknown"."""
    return _git(checkout, "rev-parse", "HEAD") or "unknown"


def is_pushed(checkout: Path) -> bool:
    """Whether a branch of a remote has the commit, as far as the last fetch or push tells."""
    return bool(_git(checkout, "branch", "--remotes", "--contains", "HEAD"))


def changed_paths(checkout: Path) -> list[str]:
    """Files that differ from the commit, and files that git doesn't know (ignored ones aside)."""
    status = _git(checkout, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", strip=False) or ""
    return sorted(line[3:] for line in status.split("\0") if line)


def is_unmodified(checkout: Path, path: str) -> bool:
    """Whether git has the file exactly as it is on the disk, so that replacing it loses nothing."""
    tracked = _git(checkout, "ls-files", "--error-unmatch", "--", path)
    return bool(tracked) and _git(checkout, "diff", "--quiet", "HEAD", "--", path) is not None


def _git(checkout: Path, *argv: str, strip: bool = True) -> str | None:
    """What git printed; None when it failed or isn't there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return None
    return done.stdout.strip() if strip else done.stdout
