"""Activates a systemd unit and restarts it exactly when its configuration is not the one it runs with.

The stamp (`/var/lib/minipc/stamps/UNIT`) is written after the restart. So a restart that was due when the power went
out, or when the converge was killed, still happens on the next run, and nothing restarts twice.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Generator, Mapping, Sequence

from pyinfra import context
from pyinfra.api import StringCommand, operation
from pyinfra.api.operation import OperationMeta

from minipc.facts.files import FileState, FileStates
from minipc.facts.memory import announce, announced
from minipc.facts.systemd import STAMPS, UnitStates, stamp_path
from minipc.operations.files import Placed

_STARTS_AT_BOOT = {"enabled", "enabled-runtime", "static", "generated", "alias", "indirect"}


def unit(
    name: str,
    unit: str,
    restart_on: Sequence[Placed] = (),
    reload_on: Sequence[Placed] = (),
    enabled: bool = True,
) -> OperationMeta:
    """Has the unit enabled, running, and running with the configuration that was placed.

    Args:
        restart_on: what `place` returned for the files that the unit reads only when it starts.
        reload_on: the same for files that it takes over on a reload, without dropping clients.
    """
    return units(name, [unit], restart_on, reload_on, enabled)


def units(
    name: str,
    units: Sequence[str],
    restart_on: Sequence[Placed] = (),
    reload_on: Sequence[Placed] = (),
    enabled: bool = True,
) -> OperationMeta:
    """The same for several units with the same configuration, in that order: enabling each reloads systemd otherwise,
    which takes half a second.
    """
    announce(context.host, UnitStates, units)
    return units_active(name=name, units=list(units), restart_on=restart_on, reload_on=reload_on, enabled=enabled)


@operation()
def units_active(
    units: Sequence[str], restart_on: Sequence[Placed], reload_on: Sequence[Placed], enabled: bool
) -> Generator[StringCommand, None, None]:
    """Enable, reload systemd when it asks for it, restart or reload, then write the stamps."""
    host = context.host
    states: dict[str, dict[str, str]] = host.get_fact(UnitStates, units=announced(host, UnitStates))
    files: dict[str, FileState] = host.get_fact(FileStates, paths=announced(host, FileStates))
    wanted = {unit: states[unit] for unit in units}
    steps = steps_to(wanted, digest_of(restart_on, files), digest_of(reload_on, files), enabled)
    if steps:
        yield StringCommand("sh", "-c", shlex.quote("\n".join(["set -eu", *steps])))


def digest_of(placed: Sequence[Placed], files: Mapping[str, FileState]) -> str:
    """Hash of the wanted state and of when each file got it.

    A file that was edited, loaded by a restart, and put back has its old content but a new time: the unit runs with
    what nobody wanted, and is restarted.
    """
    total = hashlib.sha256()
    for each in placed:
        times = [files[path].changed for path in each.paths if path in files and files[path].sha256]
        total.update(f"{each.digest} {' '.join(times)}\n".encode())
    return total.hexdigest()[:32]


def steps_to(
    states: Mapping[str, Mapping[str, str]], restart_digest: str, reload_digest: str, enabled: bool
) -> list[str]:
    """The shell lines that bring the units from their states to what is wanted; none when they are there."""
    steps = []
    if any(state.get("NeedDaemonReload") == "yes" for state in states.values()):
        steps.append("systemctl daemon-reload")
    disabled = [unit for unit, state in states.items() if state.get("UnitFileState") not in _STARTS_AT_BOOT]
    if enabled and disabled:
        steps.append(f"systemctl enable --quiet {' '.join(map(shlex.quote, disabled))}")
    for unit, state in states.items():
        steps += _activation(unit, state, restart_digest, reload_digest)
    return steps


def _activation(unit: str, state: Mapping[str, str], restart_digest: str, reload_digest: str) -> list[str]:
    quoted = shlex.quote(unit)
    steps = []
    stamp = f"{restart_digest} {reload_digest}"
    running_with, _, loaded_with = state.get("Stamp", "").partition(" ")
    active = state.get("ActiveState") == "active"
    verb = ""
    if running_with != restart_digest or not (active or _rests(state)):
        verb = "restart"
    elif loaded_with != reload_digest:
        verb = "reload" if active else "restart"
    if verb:
        steps.append(f"systemctl reset-failed {quoted} 2>/dev/null || true")
        steps.append(f"systemctl {verb} {quoted} || {{ journalctl -u {quoted} -n 20 --no-pager -o cat >&2; exit 1; }}")
    if state.get("Stamp") != stamp:
        path = shlex.quote(stamp_path(unit))
        steps += [
            f"install -d -m 755 {STAMPS}",
            f"echo {stamp} > {path}.new",
            f"sync {path}.new",
            f"mv {path}.new {path}",
        ]
    return steps


def _rests(state: Mapping[str, str]) -> bool:
    """True for a unit that is rightly not active: a oneshot that ran, or one whose Condition… forbids it here."""
    ran_conditions = state.get("ConditionTimestampMonotonic", "0") != "0"
    forbidden = ran_conditions and state.get("ConditionResult") == "no"
    return forbidden or (state.get("Type") == "oneshot" and state.get("ActiveState") == "inactive" and ran_conditions)
