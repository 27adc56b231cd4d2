"""Activate systemd units, and restart a unit only if its configuration differs from the one it runs with.

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

from minipc.pyinfra_ext.facts.files import FileState, FileStates
from minipc.pyinfra_ext.facts.memory import announce, announced, recall
from minipc.pyinfra_ext.facts.systemd import STAMPS, UnitStates, stamp_path
from minipc.pyinfra_ext.operations.files import Placed

_STARTS_AT_BOOT = {"enabled", "enabled-runtime", "static", "generated", "alias", "indirect"}


def unit(
    name: str,
    unit: str,
    restart_on: Sequence[Placed] = (),
    reload_on: Sequence[Placed] = (),
    enabled: bool = True,
) -> OperationMeta:
    """Enable the unit, and start or restart it so that it runs with the placed configuration.

    Args:
        restart_on: results of `place` for files that the unit reads only when it starts.
        reload_on: the same for files that it reads on a reload, without dropping clients.
    """
    return units(name, [unit], restart_on, reload_on, enabled)


def units(
    name: str,
    units: Sequence[str],
    restart_on: Sequence[Placed] = (),
    reload_on: Sequence[Placed] = (),
    enabled: bool = True,
) -> OperationMeta:
    """Do the same for several units with the same configuration, in the given order.

    Enabling them one by one would reload systemd each time, which takes half a second.
    """
    announce(context.host, UnitStates, units)
    return units_active(name=name, units=list(units), restart_on=restart_on, reload_on=reload_on, enabled=enabled)


@operation()
def units_active(
    units: Sequence[str], restart_on: Sequence[Placed], reload_on: Sequence[Placed], enabled: bool
) -> Generator[StringCommand, None, None]:
    """Reload systemd if needed, enable the units, restart or reload them, then write the stamps."""
    host = context.host
    states: dict[str, dict[str, str]] = recall(UnitStates, units=announced(host, UnitStates))
    files: dict[str, FileState] = recall(FileStates, paths=announced(host, FileStates))
    wanted = {unit: states[unit] for unit in units}
    steps = steps_to(wanted, digest_of(restart_on, files), digest_of(reload_on, files), enabled)
    if steps:
        yield StringCommand("sh", "-c", shlex.quote("\n".join(["set -eu", *steps])))


def digest_of(placed: Sequence[Placed], files: Mapping[str, FileState]) -> str:
    """Return the hash of the wanted state and of the time when each file got it.

    A file that was edited, loaded by a restart, and then restored has its old content but a new time. The unit still
    runs with the edit, so it is restarted.
    """
    total = hashlib.sha256()
    for each in placed:
        times = [files[path].changed for path in each.paths if path in files and files[path].sha256]
        total.update(f"{each.digest} {' '.join(times)}\n".encode())
    return total.hexdigest()[:32]


def steps_to(
    states: Mapping[str, Mapping[str, str]], restart_digest: str, reload_digest: str, enabled: bool
) -> list[str]:
    """Return the shell lines that bring the units from their states to the wanted one; none if they are there."""
    steps = []
    # A unit that is not known yet may be made from a file that was just placed (podman's quadlets).
    if any(
        state.get("NeedDaemonReload") == "yes" or state.get("LoadState") == "not-found" for state in states.values()
    ):
        steps.append("systemctl daemon-reload")
    disabled = [unit for unit, state in states.items() if state.get("UnitFileState") not in _STARTS_AT_BOOT]
    unknown = [unit for unit in disabled if states[unit].get("LoadState") == "not-found"]
    known = [unit for unit in disabled if unit not in unknown]
    if enabled and known:
        steps.append(f"systemctl enable --quiet {' '.join(map(shlex.quote, known))}")
    if enabled:
        # One that a generator makes is enabled already, and systemctl refuses to enable it.
        steps += [f"systemctl is-enabled --quiet {each} || systemctl enable --quiet {each}" for each in unknown]
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
    """Return whether a unit is as it should be without being active.

    That is a oneshot that ran, or that its timer started just now, or a unit whose conditions are not met. Nothing
    starts a static unit at boot, and systemd forgets one that is inactive. Its stamp says that it ran.
    """
    ran_conditions = state.get("ConditionTimestampMonotonic", "0") != "0"
    forbidden = ran_conditions and state.get("ConditionResult") == "no"
    oneshot, active = state.get("Type") == "oneshot", state.get("ActiveState")
    done = active == "inactive" and (ran_conditions or state.get("UnitFileState") == "static")
    return forbidden or (oneshot and (done or active in ("activating", "deactivating")))
