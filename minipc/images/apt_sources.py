"""Find the controller's Debian mirror, so that machines use the same one. This code names no mirror."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from minipc.core.errors import MissingPrerequisiteError
from minipc.core.process import call

APT_DIR = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
COMPONENTS = "main non-free-firmware"  # what Debian's installer writes since Debian 12


@dataclass(frozen=True)
class Source:
    """One apt source, from either format."""

    types: tuple[str, ...]
    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]


@dataclass(frozen=True)
class Mirrors:
    """Addresses of the mirrors; `security` is None if the controller has no security mirror."""

    main: str
    security: str | None
    proxy: str | None = None

    @property
    def web_ports(self) -> set[int]:
        """Return the TCP ports that a machine must reach: HTTP, HTTPS, and those in the addresses."""
        ports = {80, 443}
        for address in (self.main, self.security, self.proxy):
            port = urlsplit(address).port if address else None
            if port:
                ports.add(port)
        return ports


def controller_mirrors() -> Mirrors:
    """Return `$MINIPC_LAB_MIRROR` and `$MINIPC_LAB_SECURITY_MIRROR`, else the mirrors in the controller's apt sources.

    Raise MissingPrerequisiteError if there is no Debian mirror in either.
    """
    proxy = apt_proxy()
    if os.environ.get("MINIPC_LAB_MIRROR"):
        return Mirrors(os.environ["MINIPC_LAB_MIRROR"], os.environ.get("MINIPC_LAB_SECURITY_MIRROR"), proxy)
    return choose_mirrors(read_sources(APT_DIR), codename(Path("/etc/os-release").read_text()), proxy)


def choose_mirrors(sources: Iterable[Source], suite: str, proxy: str | None = None) -> Mirrors:
    """Return the mirrors among `sources` that serve Debian's `suite` (a code name)."""
    main = security = None
    for source in sources:
        if "deb" not in source.types or "main" not in source.components:
            continue
        uris = [uri for uri in map(_resolve_mirror_list, source.uris) if urlsplit(uri).scheme in ("http", "https")]
        if not uris:
            continue
        if suite in source.suites:
            main = main or uris[0].rstrip("/")
        if f"{suite}-security" in source.suites:
            security = security or uris[0].rstrip("/")
    if main is None:
        raise MissingPrerequisiteError(
            f"no Debian mirror for {suite!r} in {APT_DIR}/sources.list or sources.list.d",
            "set MINIPC_LAB_MIRROR (and MINIPC_LAB_SECURITY_MIRROR) to a Debian mirror's address",
        )
    return Mirrors(main, security, proxy)


def codename(os_release: str) -> str:
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', os_release, re.MULTILINE)
    return found.group(1) if found else "unknown"


def apt_proxy() -> str | None:
    """Return the proxy in the controller's apt configuration, or None."""
    found = re.search(r'"(.+)"', call("apt-config", "dump", "Acquire::http::Proxy"))
    return found.group(1) if found and found.group(1) != "DIRECT" else None


def read_sources(apt_dir: Path) -> list[Source]:
    sources: list[Source] = []
    for path in [apt_dir / "sources.list", *sorted((apt_dir / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            sources += parse_one_line(path.read_text())
        elif path.suffix == ".sources" and path.is_file():
            sources += parse_deb822(path.read_text())
    return sources


def parse_one_line(text: str) -> list[Source]:
    """Parse lines `deb [options] uri suite component…`, see sources.list(5)."""
    sources = []
    for line in text.splitlines():
        found = re.match(r"\s*(deb|deb-src)\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if found:
            kind, uri, suite, components = found.groups()
            sources.append(Source((kind,), (uri,), (suite,), tuple(components.split())))
    return sources


def parse_deb822(text: str) -> list[Source]:
    """Parse stanzas with `Types`, `URIs`, `Suites`, `Components`, see sources.list(5). Skip disabled ones."""
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    sources = []
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields = {
            name.lower(): tuple(value.split())
            for name, value in re.findall(r"^([A-Za-z-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if fields.get("enabled", ("yes",))[0].lower() in ("no", "false", "0"):
            continue
        wanted = [fields.get(key, ()) for key in ("types", "uris", "suites", "components")]
        if wanted[0] and wanted[1]:
            sources.append(Source(*wanted))
    return sources


def render_deb822(mirrors: Mirrors, suite: str) -> str:
    """Return the sources of a machine, as Debian's installer writes them."""
    stanzas = [(mirrors.main, f"{suite} {suite}-updates")]
    if mirrors.security:
        stanzas.append((mirrors.security, f"{suite}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {COMPONENTS}\nSigned-By: {KEYRING}\n"
        for uri, suites in stanzas
    )


def _resolve_mirror_list(uri: str) -> str:
    """Return the first address in the file of `mirror+file:/etc/apt/mirrors/….list`, as in Debian's cloud images."""
    prefix = "mirror+file:"
    if not uri.startswith(prefix):
        return uri
    path = Path("/" + uri[len(prefix) :].lstrip("/"))
    lines = path.read_text().split("\n") if path.exists() else []
    return next((line.split()[0] for line in lines if line.strip() and not line.startswith("#")), uri)
