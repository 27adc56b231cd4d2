"""Facts about many files, in one remote command instead of three for each file."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyinfra.api import FactBase

_SEPARATOR = "--hashes--"


@dataclass(frozen=True)
class FileState:
    """One path on the machine.

    Attributes:
        kind: type as `stat` prints it, such as "regular file" or "directory".
        mode: octal digits without leading zero, such as "640".
        sha256: hash of the content; None if it is not a readable regular file.
        changed: when it was last replaced or touched (ctime, epoch seconds with nanoseconds); not part of a comparison.
    """

    kind: str
    mode: str
    owner: str
    group: str
    sha256: str | None = None
    changed: str = field(default="", compare=False)


class FileStates(FactBase[dict[str, FileState]]):
    """Return type, mode, owner and SHA-256 of each path that exists."""

    def command(self, paths: Sequence[str]) -> str:
        quoted = " ".join(shlex.quote(path) for path in paths)
        return (
            f"set -- {quoted}; "
            f"stat --printf '%F\\t%a\\t%U\\t%G\\t%.9Z\\t%n\\n' -- \"$@\" 2>/dev/null; echo {_SEPARATOR}; "
            'sha256sum -- "$@" 2>/dev/null; true'
        )

    @staticmethod
    def default() -> dict[str, FileState]:
        return {}

    def process(self, output: list[str]) -> dict[str, FileState]:
        middle = output.index(_SEPARATOR)
        hashes = {line[66:]: line[:64] for line in output[middle + 1 :]}
        states = {}
        for line in output[:middle]:
            kind, mode, owner, group, changed, path = line.split("\t", 5)
            kind = "regular file" if kind == "regular empty file" else kind
            states[path] = FileState(kind, mode, owner, group, hashes.get(path), changed)
        return states


class FileContents(FactBase[dict[str, bytes]]):
    """The content of each path that can be read; for diffs, never for secrets."""

    def command(self, paths: Sequence[str]) -> str:
        quoted = " ".join(shlex.quote(path) for path in paths)
        return f'for f in {quoted}; do [ -f "$f" ] && printf "%s\\t%s\\n" "$f" "$(base64 -w0 < "$f")"; done; true'

    @staticmethod
    def default() -> dict[str, bytes]:
        return {}

    def process(self, output: list[str]) -> dict[str, bytes]:
        pairs = (line.split("\t", 1) for line in output)
        return {path: base64.b64decode(content) for path, content in pairs}
