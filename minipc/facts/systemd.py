"""The state of a systemd unit and the stamp of the configuration it runs with, in one remote command."""

from __future__ import annotations

import shlex

from pyinfra.api import FactBase

STAMPS = "/var/lib/minipc/stamps"
_PROPERTIES = "LoadState,ActiveState,UnitFileState,NeedDaemonReload,Type,ConditionResult,ConditionTimestampMonotonic"


def stamp_path(unit: str) -> str:
    """Where the hash of the configuration that `unit` was last (re)started with is kept."""
    return f"{STAMPS}/{unit}"


class UnitState(FactBase[dict[str, str]]):
    """`systemctl show` of one unit; `Stamp` is the hash of the configuration it was last restarted with."""

    def command(self, unit: str) -> str:
        return (
            f"systemctl show -p {_PROPERTIES} -- {shlex.quote(unit)}; "
            f"printf 'Stamp='; cat {shlex.quote(stamp_path(unit))} 2>/dev/null || echo"
        )

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output if "=" in line)
