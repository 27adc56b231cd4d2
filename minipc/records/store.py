"""Records on disk: one JSON file each, written once, never changed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from minipc.errors import MinipcError
from minipc.records.judgement import Record
from minipc.records.schema import Kind

SCHEMA_VERSION = 1


class RecordError(MinipcError):
    """A record can't be made, stored or read."""


def new_id(started: datetime) -> str:
    """An id for a run that started then: sorts by time, unique by chance."""
    return f"{started.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def file_name(record: Record) -> str:
    """`<id>-<kind>.json`; names sort by the time of the start."""
    return f"{record.id}-{record.kind}.json"


def save(record: Record, directory: Path) -> Path:
    """Store the record in the directory (made when missing), mode 0644, and return its path.

    The file appears complete or not at all, and is on disk when this returns.

    Raises:
        RecordError: a record of that name is there already; records are never overwritten.
        OSError: the directory can't be written.
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
        os.link(temporary, path)  # unlike a rename, it refuses when the name is taken
    except FileExistsError:
        raise RecordError(f"the record {path} exists already; records are never overwritten") from None
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
    """Read one record.

    Raises:
        RecordError: it can't be read, isn't a valid record, or was written by a newer version; says which.
    """
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is not a record: {type(error).__name__}: {error}") from None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema_version {version}; this minipc knows up to {SCHEMA_VERSION}",
            "read it with the newer minipc that wrote it, or update this one",
        )
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{path} is not a valid record: {_first_complaint(error)}") from None


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg']}{more}"


@dataclass(frozen=True)
class Broken:
    """A file among the records that isn't a valid one."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Loaded:
    """The valid records, oldest first, and the files that aren't."""

    records: Sequence[Record]
    broken: Sequence[Broken]


def load_all(directory: Path, kind: Kind | None = None) -> Loaded:
    """All records of a directory, or those of one kind. A broken file is reported, and the rest still read.

    The kind of a broken file is told by its name, so a broken drill doesn't disturb rehearsals.
    """
    records: list[Record] = []
    broken: list[Broken] = []
    for path in sorted(directory.glob(f"[0-9]*-{kind or '*'}.json")):
        try:
            records.append(load(path))
        except RecordError as error:
            broken.append(Broken(path, error.what))
    return Loaded(sorted(records, key=lambda record: (record.started, record.id)), broken)


def schema_json() -> str:
    """The JSON schema of a record, as kept in docs/reference/record.schema.json."""
    return json.dumps(Record.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
