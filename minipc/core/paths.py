"""Paths of the repository, the cache (may be deleted at any time), the state and the configuration (may not)."""

from __future__ import annotations

import os
from pathlib import Path

from minipc.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def cache_dir(*parts: str) -> Path:
    """Return `$MINIPC_CACHE_DIR`, else `$XDG_CACHE_HOME/minipc`, else `~/.cache/minipc`. Create it if missing."""
    return _directory("MINIPC_CACHE_DIR", "XDG_CACHE_HOME", ".cache", parts)


def state_dir(*parts: str) -> Path:
    """Return `$MINIPC_STATE_DIR`, else `$XDG_STATE_HOME/minipc`, else `~/.local/state/minipc`. Create it if missing."""
    return _directory("MINIPC_STATE_DIR", "XDG_STATE_HOME", ".local/state", parts)


def config_dir(*parts: str) -> Path:
    """Return `$MINIPC_CONFIG_DIR`, else `$XDG_CONFIG_HOME/minipc`, else `~/.config/minipc`. Create it if missing."""
    return _directory("MINIPC_CONFIG_DIR", "XDG_CONFIG_HOME", ".config", parts)


def _directory(override: str, xdg: str, fallback: str, parts: tuple[str, ...]) -> Path:
    if override in os.environ:
        base = Path(os.environ[override])
    else:
        base = Path(os.environ.get(xdg) or Path.home() / fallback) / "minipc"
    path = base.joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be created: {error.strerror}", f"set {override} to a folder that you may write"
        ) from None
    return path
