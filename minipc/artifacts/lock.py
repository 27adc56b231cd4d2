"""`artifacts.lock`: the SHA-256 of every upstream file that was ever verified. A hash in it is enforced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from minipc.artifacts.catalogue import FileArch, Line, Name, Pin, Sha256, Url, Version, parse_toml
from minipc.core import files
from minipc.core.errors import ConfigError, RefusedError
from minipc.core.strict import Strict, validate

_HEADER = """\
# Hashes of upstream files, enforced. Written by `minipc artifacts fetch` and `minipc artifacts lock`; commit it.
# `source` says where a hash came from. A file put in by hand (`minipc artifacts add`) is never in here.
schema = 1
"""
_WAIT_S = 60.0

Key = tuple[str, str, str]


class Locked(Strict):
    """The hash of one file.

    Attributes:
        url: the publisher's address when the hash was locked; None if no publisher offers the file.
        source: where the hash came from, for the reviewer of a change.
    """

    name: Name
    version: Version
    arch: FileArch
    url: Url | None = None
    sha256: Sha256
    source: Line

    @property
    def key(self) -> Key:
        """Name, architecture and version."""
        return self.name, self.arch, self.version


class _Document(Strict):
    schema_: Literal[1] = Field(alias="schema")
    artifact: list[Locked] = Field(default_factory=list)


class Lock:
    """The lock file at `path`. It is read again for each question, so several processes may share it.

    Args:
        guard: lock file that serialises writers.
    """

    def __init__(self, path: Path, guard: Path) -> None:
        self.path = path
        self._guard = guard

    def entries(self) -> dict[Key, Locked]:
        """Return all hashes; none if there is no lock file yet.

        Raises:
            ConfigError: it is not a lock file, or it states two hashes for one file.
        """
        if not self.path.exists():
            return {}
        document = parse_toml(self.path, _Document, "restore it from git")
        entries: dict[Key, Locked] = {}
        for entry in document.artifact:
            if entry.key in entries:
                raise ConfigError(f"{self.path.name}: two entries for {' '.join(entry.key)}", "restore it from git")
            entries[entry.key] = entry
        return entries

    def find(self, pin: Pin) -> Locked | None:
        """Return the hash of a pin, or None."""
        return self.entries().get((pin.name, pin.arch, pin.version))

    def record(self, pin: Pin, sha256: str, source: str) -> bool:
        """Lock a hash. Return whether the file was written: False if the same hash was locked already.

        Raises:
            RefusedError: another hash is locked for the same version.
            ConfigError: this is not a SHA-256, or the lock file cannot be written.
        """
        values = {"name": pin.name, "version": pin.version, "arch": pin.arch, "url": pin.url}
        new = validate(Locked, values | {"sha256": sha256, "source": source}, self.path.name, "copy the hash again")
        with files.lock(self._guard, _WAIT_S):
            entries = self.entries()
            old = entries.setdefault(new.key, new)
            if old.sha256 != sha256:
                raise RefusedError(
                    f"{self.path.name} contains {old.sha256} for {pin}, not {sha256} ({source})",
                    "find out why the publisher's file changed; to accept it, remove the old entry from the file first",
                )
            if old is not new:
                return False
            try:
                files.write_atomic(self.path, rendered(list(entries.values())).encode(), mode=0o644)
            except OSError as error:
                raise ConfigError(
                    f"{self.path} cannot be written: {error.strerror}",
                    "run as a user who may write the repository, or lock the hash there",
                ) from error
        return True


def rendered(entries: list[Locked]) -> str:
    """Return the text of the lock file; the order of the entries does not matter."""
    blocks = [_HEADER]
    for entry in sorted(entries, key=lambda entry: entry.key):
        # A JSON string is a TOML basic string; none of the values can contain control characters.
        pairs = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in entry.model_dump(exclude_none=True).items()
        ]
        blocks.append("\n".join(["[[artifact]]", *pairs]) + "\n")
    return "\n".join(blocks)
