"""Folders of the services' volumes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import FactBase


@dataclass(frozen=True)
class Folder:
    """A folder: numbers of user and group, and mode in octal digits."""

    user: str
    group: str
    mode: str


class Folders(FactBase[dict[str, Folder]]):
    """Owner and mode of each path that is a folder."""

    def command(self, paths: Sequence[str]) -> str:
        quoted = " ".join(map(shlex.quote, paths))
        return f'for f in {quoted}; do [ -d "$f" ] && [ ! -L "$f" ] && stat -c "%u %g %a %n" "$f"; done; true'

    @staticmethod
    def default() -> dict[str, Folder]:
        return {}

    def process(self, output: list[str]) -> dict[str, Folder]:
        lines = (line.split(" ", 3) for line in output)
        return {path: Folder(user, group, mode) for user, group, mode, path in lines}
