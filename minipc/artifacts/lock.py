"""`artifacts.lock`: the sha256 of every upstream file that was ever verified. A hash in it is enforced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from minipc.artifacts.catalogue import FileArch, Item, Line, Name, Sha256, Strict, Url, Version, parse_toml, validated
from minipc.artifacts.files import exclusive, write_atomically
from minipc.errors import ConfigError, RefusedError

_HEADER = """\
# Hashes of upstream files, enforced. Written by `minipc artifacts fetch` and `minipc artifacts lock`; commit it.
# `source` says where a hash came from. A file put in by hand (`minipc artifacts add`) is never in here.
schema = 1
"""
_NEXT = "restore it from git"


class Locked(Strict):
    """The hash of one file.

    Attributes:
        url: the publisher's address when it was locked; None where the file is made by hand.
        source: where the hash came from, for the reviewer of a change.
    """

    name: Name
    version: Version
    arch: FileArch
    url: Url | None = None
    sha256: Sha256
    source: Line

    @property
    def key(self) -> tuple[str, str, str]:
        """What a hash is locked for."""
        return self.name, self.arch, self.version


class _Document(Strict):
    schema_: Literal[1] = Field(alias="schema")
    artifact: list[Locked] = Field(default_factory=list)


class Lock:
    """The lock file at `path`; read anew on each question, so several processes may share it."""

    def __init__(self, path: Path, guard: Path) -> None:
        self.path = path
        self._guard = guard

    def entries(self) -> dict[tuple[str, str, str], Locked]:
        """All hashes; none when there is no lock file yet.

        Raises:
            ConfigError: the file is not a lock file, or gives two hashes for one file.
        """
        if not self.path.exists():
            return {}
        document = parse_toml(self.path, _Document, _NEXT)
        entries: dict[tuple[str, str, str], Locked] = {}
        for entry in document.artifact:
            if entry.key in entries:
                raise ConfigError(f"{self.path.name}: two entries for {' '.join(entry.key)}", _NEXT)
            entries[entry.key] = entry
        return entries

    def find(self, item: Item) -> Locked | None:
        """The hash of a file at the version it is pinned to."""
        return self.entries().get((item.name, item.arch, item.version))

    def record(self, item: Item, sha256: str, source: str) -> bool:
        """Locks a hash; True when the file was written, False when it was locked already.

        Raises:
            RefusedError: another hash is locked for the same version.
            ConfigError: this is no sha256, or the lock file can't be written.
        """
        with exclusive(self._guard):
            entries = self.entries()
            new = validated(
                self.path,
                Locked,
                {
                    "name": item.name,
                    "version": item.version,
                    "arch": item.arch,
                    "url": item.url,
                    "sha256": sha256,
                    "source": source,
                },
                "copy the hash again",
            )
            old = entries.get(new.key)
            if old is not None:
                if old.sha256 == sha256:
                    return False
                raise RefusedError(
                    f"{self.path.name} holds {old.sha256} for {item}, not {sha256} ({source})",
                    "find out why the publisher's file changed; to accept it, remove the old entry by hand first",
                )
            try:
                write_atomically(self.path, rendered([*entries.values(), new]).encode(), mode=0o644)
            except OSError as error:
                raise ConfigError(
                    f"{self.path} can't be written: {os.strerror(error.errno or 0)}",
                    "run as a user who may write the repository, or lock the hash there",
                ) from error
            return True


def rendered(entries: list[Locked]) -> str:
    """The lock file's text; the order of the entries doesn't matter."""
    blocks = [_HEADER]
    for entry in sorted(entries, key=lambda entry: entry.key):
        # A JSON string is a TOML basic string; control characters can't be in any of the values.
        pairs = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in entry.model_dump(exclude_none=True).items()
        ]
        blocks.append("\n".join(["[[artifact]]", *pairs]) + "\n")
    return "\n".join(blocks)
