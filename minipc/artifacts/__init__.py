"""Upstream files that Debian does not package: pinned, verified, cached on the controller, pushed from there.

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
from minipc.paths import ROOT, cache_dir

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
    """The file to use now, as `Store.resolve`; what a deploy calls.

    A host that doesn't answer is asked once per process, not for the 21 s that `minipc artifacts fetch` is patient.
    """
    return default_store(_impatient).resolve(name, arch, fetch=fetch)


def default_store(downloader: Callable[[], Downloader]) -> Store:
    """The store of this checkout and this user's cache."""
    return Store(
        catalogue=ROOT / "artifacts.toml",
        lock=ROOT / "artifacts.lock",
        cache=cache_dir("artifacts"),
        downloader=downloader,
    )


@functools.cache
def _impatient() -> Downloader:
    # Here, because httpx takes 90 ms to import and a converge with everything in the cache fetches nothing.
    from minipc.artifacts.download import Downloader

    return Downloader(connect_backoff=())
