"""The content-addressed cache on the controller, and the record of files put into it by hand.

sha256/HASH      verified files, named by what is in them
local.json       files put in by hand (`origin: local`)
partial/         downloads under way; resumed by the next run
locks/           one lock file per download
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from minipc.artifacts.catalogue import FileArch, Filename, Item, Name, Sha256, Strict, Version, validated
from minipc.artifacts.errors import HashMismatchError
from minipc.artifacts.files import exclusive, move_into_place, sha256_of, write_atomically
from minipc.errors import ConfigError

_NEXT = "remove it; then `minipc artifacts add` the files again"


class Local(Strict):
    """A file put in by hand.

    Attributes:
        version: what it says it is; reports show it beside the pin.
        filename: its name when it was put in.
        added: when, UTC, ISO 8601.
    """

    origin: Literal["local"] = "local"
    name: Name
    arch: FileArch
    version: Version
    sha256: Sha256
    filename: Filename
    added: str


class _Document(Strict):
    schema_: Literal[1] = Field(1, alias="schema", serialization_alias="schema")
    artifacts: list[Local] = Field(default_factory=list)


class Cache:
    """The cache below `root`; safe for several threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "sha256"
        self.partials = root / "partial"
        self.locks = root / "locks"
        for directory in (self.objects, self.partials, self.locks):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the file with this content is or would be."""
        return self.objects / sha256

    def holds(self, sha256: str) -> bool:
        """Whether the file is there; its content is not looked at."""
        return self.path(sha256).is_file()

    def verified(self, sha256: str, label: str) -> Path | None:
        """The file with this content, hashed just now; None when it isn't there.

        Raises:
            HashMismatchError: what is there is something else.
        """
        path = self.path(sha256)
        if not path.is_file():
            return None
        actual = sha256_of(path)
        if actual != sha256:
            raise HashMismatchError(
                f"{label}: the cached file {path} was changed: its sha256 is {actual}",
                f"find out who changed it; `rm {path}`, then fetch or add it again",
            )
        return path

    def place(self, temporary: Path, sha256: str) -> Path:
        """Gives a file that was verified to be `sha256` its final name."""
        path = self.path(sha256)
        temporary.chmod(0o444)
        move_into_place(temporary, path)
        return path

    def partial(self, item: Item) -> Path:
        """Where the download of a file is kept until it is whole."""
        return self.partials / f"{item.name}_{item.version}_{item.arch}"

    @contextmanager
    def working_on(self, item: Item) -> Iterator[None]:
        """Held while a file is fetched; whoever comes later waits and then finds it there."""
        with exclusive(self.locks / f"{item.name}_{item.version}_{item.arch}"):
            yield

    def locals(self) -> list[Local]:
        """Files put in by hand.

        Raises:
            ConfigError: local.json is not what `minipc artifacts add` writes.
        """
        try:
            values = json.loads(self._local_file.read_bytes())
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise ConfigError(f"{self._local_file} is not valid JSON: {error}", _NEXT) from None
        return validated(self._local_file, _Document, values, _NEXT).artifacts

    def local(self, item: Item) -> Local | None:
        """The file put in by hand for this one."""
        return next((each for each in self.locals() if _same(each, item)), None)

    def record_local(self, item: Item, version: str, sha256: str, filename: str) -> Local:
        """Records a file that is in the cache as put in by hand; replaces an earlier one."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        values = {
            "name": item.name,
            "arch": item.arch,
            "version": version,
            "sha256": sha256,
            "filename": filename,
            "added": now,
        }
        record = validated(self._local_file, Local, values, "give another --version")
        self._change_locals(item, [record])
        return record

    def forget_local(self, item: Item) -> None:
        """Removes the record; the file stays in the cache under its hash."""
        self._change_locals(item, [])

    def _change_locals(self, item: Item, new: list[Local]) -> None:
        with exclusive(self.locks / "local.json"):
            kept = [each for each in self.locals() if not _same(each, item)]
            records = sorted([*kept, *new], key=lambda each: (each.name, each.arch))
            document = _Document(schema=1, artifacts=records)
            content = document.model_dump_json(by_alias=True, indent=2) + "\n"
            write_atomically(self._local_file, content.encode(), mode=0o600)

    @property
    def _local_file(self) -> Path:
        return self.root / "local.json"


def _same(record: Local, item: Item) -> bool:
    return (record.name, record.arch) == (item.name, item.arch)
