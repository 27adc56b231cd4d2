"""The state of systemd units and the stamps of the configuration they run with, in one remote command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import FactBase
from pyinfra.api.exceptions import FactProcessError

STAMPS = "/var/lib/minipc/stamps"
_SEPARATOR = "--stamps--"
_PROPERTIES = "LoadState,ActiveState,UnitFileState,NeedDaemonReload,Type,ConditionResult,ConditionTimestampMonotonic"


def stamp_path(unit: str) -> str:
    """Where the hash of the configuration that `unit` was last (re)started with is kept."""
    return f"{STAMPS}/{unit}"


class UnitStates(FactBase[dict[str, dict[str, str]]]):
    """`systemctl show` of each unit; its `Stamp` is the hash of the configuration it was last restarted with."""

    def command(self, units: Sequence[str]) -> str:
        self._units = units
        quoted = " ".join(shlex.quote(unit) for unit in units)
        return (
            f"systemctl show -p {_PROPERTIES} -- {quoted}; echo {_SEPARATOR}; "
            f'for unit in {quoted}; do stamp=; f="{STAMPS}/$unit"; [ ! -r "$f" ] || read -r stamp < "$f"; '
            'echo "$stamp"; done'
        )

    @staticmethod
    def default() -> dict[str, dict[str, str]]:
        return {}

    def process(self, output: list[str]) -> dict[str, dict[str, str]]:
        """One block a unit, in the order asked, with an empty line between them; then one stamp a unit."""
        middle = output.index(_SEPARATOR)
        blocks = "\n".join(output[:middle]).split("\n\n")
        stamps = output[middle + 1 :]
        if not len(blocks) == len(stamps) == len(self._units):
            raise FactProcessError(f"systemctl told of {len(blocks)} units instead of {len(self._units)}")
        return {
            unit: dict(line.split("=", 1) for line in block.splitlines()) | {"Stamp": stamp}
            for unit, block, stamp in zip(self._units, blocks, stamps, strict=True)
        }
