"""Facts about the last converge: the release file and the versions of installed packages."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from pyinfra.api import FactBase

RELEASE_FILE = "/etc/minipc/release"


class Release(FactBase[dict[str, Any]]):
    """Return the content of the release file; empty if it does not exist or is not valid."""

    def command(self) -> str:
        return f"cat {RELEASE_FILE} 2>/dev/null || true"

    @staticmethod
    def default() -> dict[str, Any]:
        return {}

    def process(self, output: list[str]) -> dict[str, Any]:
        try:
            return dict(json.loads("\n".join(output)))
        except ValueError:
            return {}


class PackageVersions(FactBase[dict[str, str]]):
    """Return the installed versions of the named Debian packages, without those that are not installed."""

    def command(self, packages: Sequence[str]) -> str:
        names = " ".join(shlex.quote(package) for package in packages)
        return f"dpkg-query -W -f '${{db:Status-Abbrev}} ${{Package}} ${{Version}}\\n' {names} 2>/dev/null || true"

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        fields = (line.split() for line in output)
        return {field[1]: field[2] for field in fields if len(field) == 3 and field[0] == "ii"}
