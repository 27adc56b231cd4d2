"""Records on disk: one JSON file each, written once and never changed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minipc.core.errors import MinipcError
from minipc.evidence.records.judgement import Record
from minipc.evidence.records.schema import SCHEMA_VERSION, Kind

# What a kind is called in the file names of version 1.
_FORMER_KINDS = {"exposure": ["separation"]}


class RecordError(MinipcError):
    """A record cannot be stored or read."""


def new_id(started: datetime) -> str:
    """Return an id for a run that started at this time: it sorts by time and has random digits."""
    return f"{started.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def file_name(record: Record) -> str:
    """Return `<id>-<kind>.json`; names sort by the time of the start."""
    return f"{record.id}-{record.kind}.json"


def save(record: Record, directory: Path) -> Path:
    """Store the record in the directory, mode 0644, and return its path. Create the directory if it is missing.

    The file appears complete or not at all, and is on disk when this returns.

    Raises:
        RecordError: a record with this name exists; records are never overwritten.
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(record)
    temporary = directory / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(_to_json(record))
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, this fails if the name exists
    except FileExistsError:
        raise RecordError(f"the record {path} exists; records are never overwritten") from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(directory)
    return path


def _to_json(record: Record) -> str:
    content = record.model_dump(mode="json")
    first = ("schema_version", "id", "kind", "verdict", "reasons")
    return json.dumps({key: content[key] for key in first} | content, indent=2, ensure_ascii=False) + "\n"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> Record:
    """Read one record, also one of an older version.

    Raises:
        RecordError: the file cannot be read, is not a valid record, or was written by a newer version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is not a record: {type(error).__name__}: {error}") from None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {version}; this minipc reads versions up to {SCHEMA_VERSION}",
            "read it with the minipc that wrote it, or update this one",
        )
    try:
        return Record.model_validate_json(json.dumps(_upgraded(content)))
    except ValidationError as error:
        raise RecordError(f"{path} is not a valid record: {_first_complaint(error)}") from None


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with the names of the current version.

    Version 1 had the field `doors` for `exposure` and the kind `separation` for `exposure`.
    """
    if content["schema_version"] != 1:
        return content
    current = content | {"schema_version": 2, "exposure": content.get("doors", [])}
    current.pop("doors", None)
    if current.get("kind") == "separation":
        current["kind"] = "exposure"
    return current


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg']}{more}"


@dataclass(frozen=True)
class Broken:
    """A file among the records that is not a valid record."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Loaded:
    """The valid records, oldest first, and the broken files."""

    records: Sequence[Record]
    broken: Sequence[Broken]


def load_all(directory: Path, kind: Kind | None = None) -> Loaded:
    """Return all records of a directory, or those of one kind. A broken file does not hide the others.

    The kind of a broken file is in its name, so a broken drill does not affect rehearsals.
    """
    records: list[Record] = []
    broken: list[Broken] = []
    names = [*_FORMER_KINDS.get(kind or "", []), kind or "*"]
    for path in sorted(path for name in names for path in directory.glob(f"[0-9]*-{name}.json")):
        try:
            records.append(load(path))
        except RecordError as error:
            broken.append(Broken(path, error.what))
    return Loaded(sorted(records, key=lambda record: (record.started, record.id)), broken)


def schema_json() -> str:
    """Return the JSON schema of a record; docs/reference/record.schema.json is a copy."""
    return json.dumps(Record.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
