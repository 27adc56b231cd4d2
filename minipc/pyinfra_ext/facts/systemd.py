"""Facts about systemd units: their state and the stamps of their configuration, in one remote command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import FactBase
from pyinfra.api.exceptions import FactProcessError

STAMPS = "/var/lib/minipc/stamps"
_SEPARATOR = "--stamps--"
_PROPERTIES = "LoadState,ActiveState,UnitFileState,NeedDaemonReload,Type,ConditionResult,ConditionTimestampMonotonic"


def stamp_path(unit: str) -> str:
    """Return the path of the stamp: the hash of the configuration with which `unit` was last started."""
    return f"{STAMPS}/{unit}"


class UnitStates(FactBase[dict[str, dict[str, str]]]):
    """Return `systemctl show` of each unit, and its `Stamp`: the hash of its configuration at the last restart."""

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
        """Parse one block for each unit, in the given order, separated by empty lines; then one stamp for each unit."""
        middle = output.index(_SEPARATOR)
        blocks = "\n".join(output[:middle]).split("\n\n")
        stamps = output[middle + 1 :]
        if not len(blocks) == len(stamps) == len(self._units):
            raise FactProcessError(f"systemctl returned {len(blocks)} units, expected {len(self._units)}")
        return {
            unit: dict(line.split("=", 1) for line in block.splitlines()) | {"Stamp": stamp}
            for unit, block, stamp in zip(self._units, blocks, stamps, strict=True)
        }
