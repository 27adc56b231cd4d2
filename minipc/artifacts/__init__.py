"""Upstream files that Debian does not package: pinned, verified, cached on the controller.

found = resolve("k3s", "amd64")
if found.origin == "missing":
    ...  # NOT EXERCISED: found.why_missing
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from minipc.artifacts.errors import HashMismatchError, UnobtainableError
from minipc.artifacts.store import Artifact, Origin, Store, own_arch
from minipc.core.paths import ROOT, cache_dir

if TYPE_CHECKING:
    from minipc.artifacts.download import Downloader

__all__ = [
    "Artifact",
    "HashMismatchError",
    "Origin",
    "Store",
    "UnobtainableError",
    "default_store",
    "own_arch",
    "resolve",
]


def resolve(name: str, arch: str, *, fetch: bool = True) -> Artifact:
    """Return the file to use now, as `Store.resolve` does. Deploys call this.

    A host that does not answer is asked once per process, without the retries of `minipc artifacts fetch`.
    """
    return default_store(_impatient).resolve(name, arch, fetch=fetch)


def default_store(downloader: Callable[[], Downloader] | None = None) -> Store:
    """Return the store of this checkout and this user's cache."""
    return Store(
        catalogue=ROOT / "artifacts.toml",
        lock=ROOT / "artifacts.lock",
        cache=cache_dir("artifacts"),
        downloader=downloader,
    )


@functools.cache
def _impatient() -> Downloader:
    # Here, because httpx takes 90 ms to import and a converge with a full cache downloads nothing.
    from minipc.artifacts.download import Downloader  # noqa: PLC0415

    return Downloader(connect_backoff_s=())
