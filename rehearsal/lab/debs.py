"""Cache of downloaded packages, so that a second rehearsal downloads nothing.

A machine sees them as a read-only lower layer of its root: /var/cache/apt/archives/*.deb. apt still checks every
file against the signed index. A layer is never changed while a machine uses it: each machine has its own directory
of hard links, and the cache replaces files, never writes into them.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from urllib.parse import quote

from minipc.core.paths import cache_dir

ARCHIVES = Path("var/cache/apt/archives")
MAX_AGE_DAYS = 60
MAX_BYTES = 4 * 1024**3


def make_layer(name: str) -> Path | None:
    """Create a lower layer with every cached package for one machine. Returns None if the cache is empty."""
    packages = list(cache_dir("debs").glob("*.deb"))
    if not packages:
        return None
    layer = _layer(name)
    shutil.rmtree(layer, ignore_errors=True)
    archives = layer / ARCHIVES
    archives.mkdir(parents=True)
    for path in (layer, *archives.relative_to(layer).parents, ARCHIVES):
        (layer / path).chmod(0o755)
    for package in packages:
        (archives / package.name).hardlink_to(package)
    return layer


def layer_of(name: str) -> Path | None:
    layer = _layer(name)
    return layer if layer.exists() else None


def remove_layer(name: str) -> None:
    shutil.rmtree(_layer(name), ignore_errors=True)


def harvest(upper: Path, dpkg_status: Path) -> int:
    """Copy the packages that a machine downloaded into the cache. Returns how many.

    Args:
        upper: the machine's writable layer.
        dpkg_status: its dpkg status file, for which packages of the cache it used.
    """
    cache = cache_dir("debs")
    taken = 0
    for package in sorted((upper / ARCHIVES).glob("*.deb")):
        if not package.is_file() or package.is_symlink():
            continue
        temporary = cache / f".{package.name}.new"
        shutil.copyfile(package, temporary)
        temporary.chmod(0o644)
        temporary.rename(cache / package.name)
        taken += 1
    if dpkg_status.exists():
        _mark_used(cache, installed_files(dpkg_status.read_text()))
    prune(cache, now=time.time())
    return taken


def installed_files(status: str) -> set[str]:
    """Return the file names, as apt writes them, of the installed packages in a dpkg status file."""
    names = set()
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if "Version" in fields and fields.get("Status", "").endswith(" installed"):
            version = quote(fields["Version"], safe="+~").lower()
            names.add(f"{fields['Package']}_{version}_{fields['Architecture']}.deb")
    return names


def prune(cache: Path, *, now: float, max_bytes: int = MAX_BYTES) -> None:
    """Remove packages unused for 60 days, then the least recently used until the cache fits."""
    packages = sorted(((path.stat(), path) for path in cache.glob("*.deb")), key=lambda pair: -pair[0].st_mtime)
    total = 0
    for stat, path in packages:
        total += stat.st_size
        if total > max_bytes or now - stat.st_mtime > MAX_AGE_DAYS * 86400:
            path.unlink(missing_ok=True)


def _mark_used(cache: Path, names: set[str]) -> None:
    for name in names:
        if (cache / name).exists():
            os.utime(cache / name)


def _layer(name: str) -> Path:
    """Return the layer of a machine. It is next to the cache, because hard links cannot cross file systems."""
    return cache_dir("debs", "layers") / name
