"""Pack and unpack the tar in a bundle: a manifest, then exactly the files that it names.

It is a tar so that `age -d` and `tar` open a bundle without minipc. `minipc.secrets.sealed` seals it.
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

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from minipc.core.errors import MinipcError
from minipc.core.strict import Strict

FORMAT = 1
MANIFEST = "manifest.json"
README = "README.txt"
MAX_BYTES = 32 << 20

Role = Literal["repository", "secrets", "age-key", "ssh-key", "pins"]
_SAFE_PATH = re.compile(r"[A-Za-z0-9._@+ -]+(/[A-Za-z0-9._@+ -]+)*")
PINS = ("pins.json", "allowed_signers", "approved.json")
"""Files with what a person has pinned: machines, signers, commits."""
_REPOSITORY_FOLDERS = {"inventory", "group_data", "secrets", "services"}
_REPOSITORY_FILES = {"artifacts.lock"}
_DAMAGED = "use another copy, or create a new bundle on the computer that still has everything"


class BundleError(MinipcError):
    """A bundle cannot be created, opened or trusted."""


def _safe(path: str) -> str:
    if not _SAFE_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError("not a plain relative path")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SafePath = Annotated[str, AfterValidator(_safe)]


class Entry(Strict):
    """One file.

    Attributes:
        path: name in the tar.
        role: purpose, which decides where it may be written.
        base: what `target` is relative to.
        target: path to write it to.
        size: bytes.
    """

    path: SafePath
    role: Role
    base: Literal["repository", "home", "config", "state", "age-key"]
    target: SafePath
    sha256: Sha256
    size: Annotated[int, Field(ge=0, le=MAX_BYTES)]


class Fingerprints(Strict):
    """Keyed hashes of the content. They show what changed since, and do not help to guess a value.

    Attributes:
        key: random for each bundle, hex.
        items: description ("secret NAME", "file PATH") -> HMAC-SHA-256, hex.
    """

    key: Sha256
    items: dict[str, Sha256]


class Origin(Strict):
    """The repository that the bundle was made in.

    Attributes:
        remote: address of the git remote, without credentials; empty if there is none.
        commit: 40 hex digits, or "unknown".
    """

    remote: str
    commit: str


class Manifest(Strict):
    """Description of the content.

    Attributes:
        created: UTC.
        environment: `production` or `lab`.
        backend: where the secrets were kept; in the bundle they are always an age file.
        gaps: what a rebuild may need and the bundle does not contain, for people.
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
    """A manifest and the files it names; no repr, because there are keys among them."""

    manifest: Manifest
    files: Mapping[str, bytes]


def pack(payload: Payload) -> bytes:
    """Return the tar. Raises BundleError if it is larger than MAX_BYTES."""
    manifest = payload.manifest.model_dump_json(indent=2).encode() + b"\n"
    members = {MANIFEST: manifest, README: _readme(payload.manifest)} | dict(payload.files)
    if sum(map(len, members.values())) > MAX_BYTES:
        raise BundleError(
            f"the bundle would be larger than {MAX_BYTES >> 20} MB", "remove large files from inventory/ and secrets/"
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
    """Return the payload after checking every file against the manifest.

    Raises:
        BundleError: it is not a complete tar, has an unknown format, or contains anything that the manifest does not
            name or that may not be written to its target: links, devices, duplicates, other paths.
    """
    members = _members(content)
    raw = members.pop(MANIFEST, None)
    members.pop(README, None)
    if raw is None:
        raise BundleError(f"the bundle contains no {MANIFEST}", _DAMAGED)
    manifest = _manifest(raw)
    paths = [entry.path for entry in manifest.entries]
    if sorted(paths) != sorted(members):
        raise BundleError(f"the bundle does not contain exactly the files that its {MANIFEST} names", _DAMAGED)
    for entry in manifest.entries:
        found = members[entry.path]
        if len(found) != entry.size or hashlib.sha256(found).hexdigest() != entry.sha256:
            raise BundleError(f"{entry.path} in the bundle does not have the size and hash in its {MANIFEST}", _DAMAGED)
        _check_target(entry, found)
    roles = [entry.role for entry in manifest.entries]
    if roles.count("age-key") != 1 or roles.count("secrets") != 1:
        raise BundleError("the bundle does not contain exactly one age key and one secrets file", _DAMAGED)
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
                    raise BundleError(f"{member.name!r} in the bundle is not a regular file, or exists twice", _DAMAGED)
                members[member.name] = file.read()
                if len(members[member.name]) != member.size:
                    raise BundleError(f"{member.name!r} in the bundle is incomplete", _DAMAGED)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BundleError(
            f"the content of the bundle is not a complete tar ({type(error).__name__})", _DAMAGED
        ) from None
    return members


def _manifest(raw: bytes) -> Manifest:
    try:
        version = json.loads(raw)["format"]
    except (ValueError, KeyError, TypeError):
        version = None
    if isinstance(version, int) and version != FORMAT:
        raise BundleError(
            f"the bundle has format {version}, this version of minipc reads {FORMAT}",
            "open it with the commit that its README.txt names",
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(f"{MANIFEST} in the bundle is not valid at {where or 'its beginning'}", _DAMAGED) from None


def _check_target(entry: Entry, content: bytes) -> None:
    """Refuse a file that its role may not write there: a bundle must not write any file to any place."""
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
            fine = entry.base == "state" and entry.target.split("/")[-1] in PINS
    if not fine:
        raise BundleError(f"{entry.path} in the bundle may not be written to {entry.base} {entry.target}", _DAMAGED)


def _readme(manifest: Manifest) -> bytes:
    lines = [
        "Break-glass bundle of minipc. Everything in it is secret.",
        "",
        f"created       {manifest.created:%Y-%m-%d %H:%M} UTC, environment {manifest.environment}",
        f"repository    {manifest.origin.remote or '(no remote)'} at commit {manifest.origin.commit}",
        "",
        "With minipc:  clone the repository, check out the commit, `make setup`, then",
        "              .venv/bin/minipc bundle open FILE",
        "By hand:      copy each file to the path in the last column (~ is your home, . the clone), mode 0600.",
        "              Read the secrets with: age -d -i age.key secrets.age",
        "",
        *(f"  {entry.path:40} {_by_hand(entry)}" for entry in manifest.entries),
        "",
        *(f"NOT IN THE BUNDLE: {gap}" for gap in manifest.gaps),
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
    """Return a moment as text for people."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
