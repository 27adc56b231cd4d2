"""Where things live: the repository, the cache (may be deleted at any time) and the state (may not)."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cache_dir(*parts: str) -> Path:
    """`$MINIPC_CACHE_DIR`, else `$XDG_CACHE_HOME/minipc`, else `~/.cache/minipc`; created when missing."""
    return _directory("MINIPC_CACHE_DIR", "XDG_CACHE_HOME", ".cache", parts)


def state_dir(*parts: str) -> Path:
    """`$MINIPC_STATE_DIR`, else `$XDG_STATE_HOME/minipc`, else `~/.local/state/minipc`; created when missing."""
    return _directory("MINIPC_STATE_DIR", "XDG_STATE_HOME", ".local/state", parts)


def config_dir(*parts: str) -> Path:
    """`$MINIPC_CONFIG_DIR`, else `$XDG_CONFIG_HOME/minipc`, else `~/.config/minipc`; created when missing."""
    return _directory("MINIPC_CONFIG_DIR", "XDG_CONFIG_HOME", ".config", parts)


def _directory(override: str, xdg: str, fallback: str, parts: tuple[str, ...]) -> Path:
    if override in os.environ:
        base = Path(os.environ[override])
    else:
        base = Path(os.environ.get(xdg) or Path.home() / fallback) / "minipc"
    path = base.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
