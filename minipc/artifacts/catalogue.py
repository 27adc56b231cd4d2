"""Read `artifacts.toml`: the pinned upstream files and where their publishers keep them."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from minipc.artifacts.formats import Format
from minipc.core.errors import ConfigError
from minipc.core.strict import Model, Strict, validate

FileArch = Literal["amd64", "arm64", "all"]
ARCHITECTURES: tuple[FileArch, ...] = ("amd64", "arm64")


def safe_url(value: str) -> str:
    """Return the URL if a file may be fetched from it.

    Raises:
        ValueError: it is neither https nor http to this computer, has no host, or contains credentials.
    """
    parts = urlsplit(value)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))):
        raise ValueError("an https address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address without user name and password")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _matching(pattern: str, words: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(words)
        return value

    return AfterValidator(check)


Name = Annotated[str, _matching(r"[a-z][a-z0-9-]*", "lower-case letters, digits and -, starting with a letter")]
Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "a sha256: 64 hexadecimal digits in lower case")]
Version = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9.+_~-]*", "letters, digits and .+_~-, starting with a letter or digit")
]
Filename = Annotated[str, _matching(r"[^/\x00-\x1f\x7f]+", "a file name without a path")]
Line = Annotated[str, _matching(r"[^\x00-\x1f\x7f]+", "one line of text")]
Url = Annotated[str, AfterValidator(safe_url)]


class Mirrors(Strict):
    """Addresses to fetch from instead of the publisher's. The path is kept; checksum files never use a mirror.

    Attributes:
        all: base address for every host that is not in `hosts`.
        hosts: base address by the publisher's host name.
    """

    all: Url | None = None
    hosts: dict[str, Url] = Field(default_factory=dict)

    def apply(self, url: str) -> str:
        """Return the address to fetch `url` from."""
        parts = urlsplit(url)
        base = self.hosts.get(parts.hostname or "", self.all)
        query = f"?{parts.query}" if parts.query else ""
        return f"{base.rstrip('/')}{parts.path}{query}" if base else url


class _File(Strict):
    url: Url | None = None
    checksums: Url | None = None


class _Entry(Strict):
    version: Version
    component: Name
    what: Line
    format: Format
    files: Annotated[dict[FileArch, _File], Field(min_length=1)]
    images_of: Name | None = None

    @model_validator(mode="after")
    def _obtainable(self) -> _Entry:
        if self.images_of is None and any(file.url is None for file in self.files.values()):
            raise ValueError("a `url` for each file, or `images_of` with the artifact whose images are saved")
        return self


class _Document(Strict):
    schema_: Literal[1] = Field(alias="schema")
    mirrors: Mirrors = Mirrors()
    artifacts: dict[Name, _Entry]


@dataclass(frozen=True)
class Pin:
    """One pinned upstream file: an artifact for one architecture.

    Attributes:
        arch: `all` if one file serves every architecture.
        url: the publisher's address; None if no publisher offers the file.
        checksums: address of the publisher's checksum file; None if there is none.
        images_of: artifact whose container images the file consists of; None if it is downloaded.
    """

    name: str
    version: str
    arch: FileArch
    component: str
    format: Format
    url: str | None = None
    checksums: str | None = None
    images_of: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arch})"

    @property
    def publisher(self) -> str:
        """Return where it is downloaded from."""
        return self.url or f"the registries of the images in {self.images_of}"

    @property
    def filename(self) -> str:
        """Return the publisher's file name, or a descriptive one."""
        if self.url:
            return unquote(urlsplit(self.url).path.rpartition("/")[2])
        return f"{self.name}-{self.version}-{self.arch}.{self.format}"


@dataclass(frozen=True)
class Catalogue:
    """All pins, in the order of the file."""

    pins: tuple[Pin, ...]
    mirrors: Mirrors

    def find(self, name: str, arch: str) -> Pin:
        """Return the pin of an artifact for an architecture.

        Raises:
            ConfigError: there is no such artifact, or none for this architecture.
        """
        files = {pin.arch: pin for pin in self.pins if pin.name == name}
        if not files:
            known = list(dict.fromkeys(pin.name for pin in self.pins))
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"unknown artifact `{name}`; known: {', '.join(known)}",
                f"did you mean `{near[0]}`?" if near else "`minipc artifacts list` lists all artifacts",
            )
        for key in (arch, "all"):
            if key in files:
                return files[key]
        raise ConfigError(
            f"artifacts.toml: {name} has no file for architecture `{arch}`; it has: {', '.join(files)}",
            f"add [artifacts.{name}.files.{arch}] or use one of these",
        )


def load_catalogue(path: Path) -> Catalogue:
    """Read `artifacts.toml`.

    Raises:
        ConfigError: names the file, the key, what was given and what is allowed.
    """
    document = parse_toml(path, _Document, "restore it from git, or correct the key")
    pins = tuple(
        Pin(
            name=name,
            version=entry.version,
            arch=arch,
            component=entry.component,
            format=entry.format,
            url=_with_version(file.url, entry.version),
            checksums=_with_version(file.checksums, entry.version),
            images_of=entry.images_of,
        )
        for name, entry in document.artifacts.items()
        for arch, file in entry.files.items()
    )
    return Catalogue(pins, document.mirrors)


def _with_version(template: str | None, version: str) -> str | None:
    return template.replace("{version}", quote(version, safe="")) if template else None


def parse_toml(path: Path, model: type[Model], next_step: str) -> Model:
    """Read a TOML file as a strict model.

    Raises:
        ConfigError: names the file, the key, what was given and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", "restore it from git") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}", next_step) from None
    return validate(model, values, path.name, next_step)
