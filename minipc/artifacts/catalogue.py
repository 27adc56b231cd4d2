"""What `artifacts.toml` says: which upstream files exist, their pins and where their publishers keep them."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from minipc.artifacts.formats import Format
from minipc.errors import ConfigError

FileArch = Literal["amd64", "arm64", "all"]
ARCHITECTURES: tuple[FileArch, ...] = ("amd64", "arm64")


def safe_url(value: str) -> str:
    """The URL itself when a file may be fetched from it.

    Raises:
        ValueError: it is neither https nor http to this machine, has no host, or carries credentials.
    """
    parts = urlsplit(value)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _loopback(parts.hostname))):
        raise ValueError("an https address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address without user name and password")
    return value


def _loopback(host: str) -> bool:
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


Name = Annotated[str, _matching(r"[a-z][a-z0-9-]*", "small letters, digits and -, a letter first")]
Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "a sha256: 64 hexadecimal digits, small letters")]
Version = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9.+_~-]*", "letters, digits and .+_~-, a letter or digit first")
]
Filename = Annotated[str, _matching(r"[^/\x00-\x1f\x7f]+", "a file name without a path")]
Line = Annotated[str, _matching(r"[^\x00-\x1f\x7f]+", "one line of text")]
Url = Annotated[str, AfterValidator(safe_url)]


class Strict(BaseModel):
    """Takes exactly what it declares: no unknown key, no converted type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Strict)


class Mirrors(Strict):
    """Where to fetch from instead; the path is kept, checksum files are never taken from a mirror.

    Attributes:
        all: base address for every host without one of its own.
        hosts: base address by the publisher's host.
    """

    all: Url | None = None
    hosts: dict[str, Url] = Field(default_factory=dict)

    def apply(self, url: str) -> str:
        """The address to fetch `url` from."""
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
    how: Line | None = None


class _Document(Strict):
    schema_: Literal[1] = Field(alias="schema")
    mirrors: Mirrors = Mirrors()
    artifacts: dict[Name, _Entry]


@dataclass(frozen=True)
class Item:
    """One upstream file: an artifact in one architecture.

    Attributes:
        arch: `all` where one file serves every architecture.
        url: the publisher's address, None where the file is made by hand.
        checksums: address of the publisher's checksum file, None where there is none.
        how: how a file without an address is made.
    """

    name: str
    version: str
    arch: FileArch
    component: str
    what: str
    format: Format
    url: str | None = None
    checksums: str | None = None
    how: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arch})"

    @property
    def filename(self) -> str:
        """The publisher's file name, or one that says the same."""
        if self.url:
            return unquote(urlsplit(self.url).path.rpartition("/")[2])
        return f"{self.name}-{self.version}-{self.arch}.{self.format}"


@dataclass(frozen=True)
class Catalogue:
    """All items, in the order of the file."""

    items: tuple[Item, ...]
    mirrors: Mirrors
    path: Path

    def item(self, name: str, arch: str) -> Item:
        """The file of an artifact for an architecture.

        Raises:
            ConfigError: no such artifact, or not for this architecture.
        """
        files = {item.arch: item for item in self.named(name)}
        for key in (arch, "all"):
            if key in files:
                return files[key]
        raise ConfigError(
            f"{self.path.name}: {name} has no file for architecture `{arch}`; it has: {', '.join(files)}",
            f"add [artifacts.{name}.files.{arch}] or use one of these",
        )

    def named(self, name: str) -> list[Item]:
        """The files of one artifact.

        Raises:
            ConfigError: no such artifact; suggests the nearest one.
        """
        found = [item for item in self.items if item.name == name]
        if not found:
            known = list(dict.fromkeys(item.name for item in self.items))
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"unknown artifact `{name}`; known: {', '.join(known)}",
                f"did you mean `{near[0]}`?" if near else "`minipc artifacts list` shows them",
            )
        return found


def load_catalogue(path: Path) -> Catalogue:
    """Reads `artifacts.toml`.

    Raises:
        ConfigError: names the file, the key, what was given and what is allowed.
    """
    document = parse_toml(path, _Document, "restore it from git, or mend the key")
    problems = []
    items = []
    for name, entry in document.artifacts.items():
        for arch, file in entry.files.items():
            if file.url is None and entry.how is None:
                problems.append(f"artifacts.{name}.files.{arch}.url: missing, and artifacts.{name}.how is too")
            items.append(
                Item(
                    name=name,
                    version=entry.version,
                    arch=arch,
                    component=entry.component,
                    what=entry.what,
                    format=entry.format,
                    url=_filled(file.url, entry.version),
                    checksums=_filled(file.checksums, entry.version),
                    how=entry.how,
                )
            )
    if problems:
        raise _config_error(path, problems, "give the publisher's address, or say how the file is made")
    return Catalogue(tuple(items), document.mirrors, path)


def _filled(template: str | None, version: str) -> str | None:
    return template.replace("{version}", quote(version, safe="")) if template else None


def parse_toml(path: Path, model: type[Model], next_step: str) -> Model:
    """A TOML file as a strict model.

    Raises:
        ConfigError: names the file, the key, what was given and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", "restore it from git") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}", next_step) from None
    return validated(path, model, values, next_step)


def validated(path: Path, model: type[Model], values: Any, next_step: str) -> Model:
    """Checks values read from a file.

    Raises:
        ConfigError: as in `parse_toml`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _config_error(path, [_explain(detail) for detail in error.errors()], next_step) from None


def _config_error(path: Path, problems: list[str], next_step: str) -> ConfigError:
    return ConfigError("".join(f"{path.name}: {problem}\n" for problem in problems).rstrip(), next_step)


def _explain(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    given, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return f"{key}: missing; it is REQUIRED"
        case "extra_forbidden":
            return f"{key}: unknown key"
        case "literal_error":
            return f"{key}: given {given!r}, allowed: {context['expected']}"
        case "value_error":
            return f"{key}: given {given!r}, allowed: {context['error']}"
        case _:
            return f"{key}: given {given!r}, allowed: {detail['msg'].lower()}"
