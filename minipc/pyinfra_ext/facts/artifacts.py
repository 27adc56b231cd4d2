"""Facts about pushed upstream files, without reading hundreds of megabytes again each time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import FactBase

STAMPS = "/var/lib/minipc/artifacts"


def stamp_path(path: str) -> str:
    """Return the path of the stamp: which artifact was pushed to `path`, and the file's signature at that time."""
    return f"{STAMPS}/{path.strip('/').replace('/', '-')}"


def signature_command(path: str) -> str:
    """Return a command that prints the file's signature: ctime, size, inode. It changes when the file does."""
    return f"stat --printf '%.9Z-%s-%i' -- {shlex.quote(path)}"


class PushedArtifacts(FactBase[dict[str, str]]):
    """Return what each path holds (see `operations.artifacts.identity`); omit files modified after the push."""

    def command(self, paths: Sequence[str]) -> str:
        lines = (
            f'[ "$({signature_command(path)} 2>/dev/null)" = "$(sed -n 2p {stamp} 2>/dev/null)" ] && '
            f"printf '%s\\t%s\\n' \"$(sed -n 1p {stamp} 2>/dev/null)\" {shlex.quote(path)}"
            for path, stamp in ((path, shlex.quote(stamp_path(path))) for path in paths)
        )
        return "; ".join([*lines, "true"])

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        pairs = (line.split("\t", 1) for line in output)
        return {path: identity for identity, path in pairs if identity}
