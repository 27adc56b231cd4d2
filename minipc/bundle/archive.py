"""The inside of a bundle: a tar with a manifest first, then the files that it names and nothing else.

A tar, so that `age -d` and `tar` open a bundle where there is no minipc. Sealing is `minipc.secrets.sealed`'s concern.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from minipc.errors import MinipcError

FORMAT = 1
MANIFEST = "manifest.json"
README = "README.txt"
MAX_BYTES = 32 << 20

Role = Literal["repository", "secrets", "age-key", "ssh-key", "pins"]
_SAFE_PATH = re.compile(r"[A-Za-z0-9._@+ -]+(/[A-Za-z0-9._@+ -]+)*")
_REPOSITORY_FOLDERS = {"inventory", "group_data", "secrets"}
_REPOSITORY_FILES = {"artifacts.lock"}
_DAMAGED = "take another copy, or make a new bundle where everything still is"


class BundleError(MinipcError):
    """The bundle can't be made, opened or trusted."""


def _safe(path: str) -> str:
    if not _SAFE_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError("not a plain relative path")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SafePath = Annotated[str, AfterValidator(_safe)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Entry(_Strict):
    """One file.

    Attributes:
        path: name in the tar.
        role: what it is for, which decides where it goes.
        target: where it goes, relative to what the role says: the checkout, the home or the state directory.
        base: what `target` is relative to.
        size: bytes.
    """

    path: SafePath
    role: Role
    base: Literal["repository", "home", "config", "state", "age-key"]
    target: SafePath
    sha256: Sha256
    size: Annotated[int, Field(ge=0, le=MAX_BYTES)]


class Fingerprints(_Strict):
    """Keyed hashes of what went in: they tell whether something changed since, and help nobody to guess a value.

    Attributes:
        key: random, hex; made anew for each bundle.
        items: what it is ("secret NAME", "file PATH") -> HMAC-SHA-256, hex.
    """

    key: Sha256
    items: dict[str, Sha256]


class Origin(_Strict):
    """Where the bundle came from.

    Attributes:
        remote: address of the git remote, without credentials; empty when there is none.
        commit: 40 hex digits, or "unknown".
    """

    remote: str
    commit: str


class Manifest(_Strict):
    """What is inside.

    Attributes:
        created: moment, UTC.
        environment: `production` or `lab`.
        backend: where the secrets were kept; inside they are always an age file.
        gaps: what a rebuild may need and the bundle does not have, for people.
    """

    format: Literal[1]
    created: AwareDatetime
    environment: Literal["production", "lab"]
    backend: Literal["age", "vault"]
    origin: Origin
    entries: Annotated[list[Entry], Field(min_length=1)]
    fingerprints: Fingerprints
    gaps: list[str]


@dataclass(frozen=True, repr=False)
class Payload:
    """A manifest and the files it names; no repr, because keys are among them."""

    manifest: Manifest
    files: Mapping[str, bytes]


def pack(payload: Payload) -> bytes:
    """The tar. Raises BundleError when it is larger than MAX_BYTES."""
    manifest = payload.manifest.model_dump_json(indent=2).encode() + b"\n"
    members = {MANIFEST: manifest, README: _readme(payload.manifest)} | dict(payload.files)
    if sum(map(len, members.values())) > MAX_BYTES:
        raise BundleError(
            f"more than {MAX_BYTES >> 20} MB in a bundle", "keep large files out of inventory/ and secrets/"
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o600
            member.mtime = int(payload.manifest.created.timestamp())
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def unpack(content: bytes) -> Payload:
    """The payload, once every file is what the manifest says.

    Raises:
        BundleError: not a tar, not whole, of a format this version doesn't know, or with anything in it that the
            manifest doesn't name: links, devices, paths that lead elsewhere, files twice.
    """
    members = _members(content)
    raw = members.pop(MANIFEST, None)
    members.pop(README, None)
    if raw is None:
        raise BundleError(f"there is no {MANIFEST} in the bundle", _DAMAGED)
    manifest = _manifest(raw)
    paths = [entry.path for entry in manifest.entries]
    if sorted(paths) != sorted(members):
        raise BundleError(f"the bundle does not hold exactly what its {MANIFEST} names", _DAMAGED)
    for entry in manifest.entries:
        found = members[entry.path]
        if len(found) != entry.size or hashlib.sha256(found).hexdigest() != entry.sha256:
            raise BundleError(f"{entry.path} in the bundle is not what its {MANIFEST} says", _DAMAGED)
        _check_target(entry, found)
    roles = [entry.role for entry in manifest.entries]
    if roles.count("age-key") != 1 or roles.count("secrets") != 1:
        raise BundleError("the bundle does not hold exactly one age key and one file of secrets", _DAMAGED)
    return Payload(manifest, members)


def _members(content: bytes) -> dict[str, bytes]:
    if len(content) > 2 * MAX_BYTES:
        raise BundleError(f"the bundle is larger than {2 * MAX_BYTES >> 20} MB", _DAMAGED)
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                file = tar.extractfile(member) if plain else None
                if file is None or member.name in members:
                    raise BundleError(f"{member.name!r} in the bundle is no plain file, or is there twice", _DAMAGED)
                members[member.name] = file.read()
                if len(members[member.name]) != member.size:
                    raise BundleError(f"{member.name!r} in the bundle is cut short", _DAMAGED)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BundleError(f"the inside of the bundle is not a whole tar ({type(error).__name__})", _DAMAGED) from None
    return members


def _manifest(raw: bytes) -> Manifest:
    try:
        version = json.loads(raw)["format"]
    except (ValueError, KeyError, TypeError):
        version = None
    if isinstance(version, int) and version != FORMAT:
        raise BundleError(
            f"the bundle has format {version}, this version of minipc reads {FORMAT}",
            "open it with the commit it was made at, which its README.txt names",
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(f"{MANIFEST} in the bundle is not valid at {where or 'its start'}", _DAMAGED) from None


def _check_target(entry: Entry, content: bytes) -> None:
    """What a role may write, and where: opening a bundle must not become a way to write any file anywhere."""
    folder = entry.target.split("/")[0]
    match entry.role:
        case "repository":
            inside = entry.target in _REPOSITORY_FILES or (folder in _REPOSITORY_FOLDERS and folder != entry.target)
            fine = entry.base == "repository" and inside
        case "secrets":
            fine = entry.base in ("repository", "state") and entry.target.endswith(".age")
        case "age-key":
            fine = entry.base == "age-key"
        case "ssh-key":
            name = entry.target.split("/")[-1]
            key = content.startswith((b"-----BEGIN ", b"ssh-", b"ecdsa-", b"sk-"))
            fine = entry.base in ("home", "config", "state") and key and not name.startswith(".")
        case "pins":
            fine = entry.base == "state" and entry.target.endswith("pins.json")
    if not fine:
        raise BundleError(
            f"{entry.path} in the bundle would go to {entry.base} {entry.target}, where it has no place", _DAMAGED
        )


def _readme(manifest: Manifest) -> bytes:
    lines = [
        "Break-glass bundle of minipc. Everything here is secret.",
        "",
        f"made          {manifest.created:%Y-%m-%d %H:%M} UTC, environment {manifest.environment}",
        f"repository    {manifest.origin.remote or '(no remote)'} at commit {manifest.origin.commit}",
        "",
        "With minipc:  clone the repository, check out the commit, `make setup`, then",
        "              .venv/bin/minipc bundle open FILE",
        "By hand:      each file goes where the last column says (~ is your home, . the clone), mode 0600.",
        "              Secrets are read with: age -d -i age.key secrets.age",
        "",
        *(f"  {entry.path:40} {_by_hand(entry)}" for entry in manifest.entries),
        "",
        *(f"NOT INSIDE: {gap}" for gap in manifest.gaps),
    ]
    return "\n".join(lines).encode() + b"\n"


def _by_hand(entry: Entry) -> str:
    match entry.base:
        case "repository":
            return f"./{entry.target}"
        case "home":
            return f"~/{entry.target}"
        case "state":
            return f"~/.local/state/minipc/{entry.target}"
        case _:
            return f"~/.config/minipc/{entry.target}"


def created_text(moment: datetime) -> str:
    """A moment for people."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
