"""Confirm or revert: the machine reverts a change that could lock everybody out, unless a new connection confirms it.

    place(…, change="firewall")     copies the old files before it replaces them, and starts the timer
    arm(…, change="firewall")       sets the command that reloads the old files, and starts the timer again
    unit(…)                         the change takes effect
    confirm(…, change="firewall")   opens a new connection and stops the timer

If nothing changed, no command is run. If the controller dies in between, the change is not confirmed and is reverted.
See docs/concepts/network-access.md.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Generator

from pyinfra import context, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta
from pyinfra.api.state import State

from minipc.core.polling import wait_until
from minipc.pyinfra_ext.facts.files import FileState, FileStates
from minipc.pyinfra_ext.facts.memory import announce, announced, recall
from minipc.remote import ssh

REVERT = "/usr/local/lib/minipc/revert"
STATE = "/var/lib/minipc/revert"
# Stop trying this long before the machine reverts the change.
MARGIN_S = 10
PAUSE_S = 0.5

_clock_runs: set[tuple[str, str]] = set()


def arm(name: str, change: str, undo: str) -> OperationMeta:
    """Set the command that reverts a change, before the change takes effect. This starts the timer again.

    Args:
        change: the same name as in `place(change=…)`.
        undo: shell command that reloads the old files.
    """
    announce(context.host, FileStates, [_kept(change)])
    return armed(name=name, change=change, undo=undo)


def confirm(name: str, change: str, within_s: int, address: str | None = None) -> OperationMeta:
    """Confirm a change after it took effect: open a new connection and stop the timer over it.

    Args:
        within_s: time after which the machine reverts the change, seconds.
        address: address at which the machine must answer; None: the same as before.
    """
    announce(context.host, FileStates, [_kept(change)])
    return confirmed(name=name, change=change, within_s=within_s, address=address)


@operation()
def armed(change: str, undo: str) -> Generator[StringCommand | FunctionCommand, None, None]:
    """Start the timer if files were replaced and not yet confirmed."""
    if _is_pending(change):
        yield clock_starts(change)
        yield StringCommand(REVERT, "arm", change, shlex.quote(undo))


@operation()
def confirmed(change: str, within_s: int, address: str | None) -> Generator[FunctionCommand, None, None]:
    """Confirm the change if one is pending."""
    # After a lost connection nothing is pending any more, because the machine has reverted the change.
    if (context.host.name, change) in _clock_runs or _is_pending(change):
        yield FunctionCommand(_connect_and_confirm, (change, within_s, address), {})


def clock_starts(change: str) -> FunctionCommand:
    """Remember that the timer runs on the machine, so that a reverted change does not count as confirmed."""
    return FunctionCommand(_remember, (change,), {})


def _remember(state: State, host: Host, change: str) -> bool:
    _clock_runs.add((host.name, change))
    return True


def _connect_and_confirm(state: State, host: Host, change: str, within_s: int, address: str | None) -> bool:
    """Confirm over a separate connection, and return whether the machine accepted it."""
    config = ssh.write_config([(host.name, host.data.dict())])
    options = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=5"]
    if address:
        options += ["-o", f"HostName={address}", "-o", f"HostKeyAlias={host.name}"]
    argv = ["ssh", "-F", str(config), *options, host.name, "--", f"{REVERT} confirm {change}"]
    done = wait_until(
        lambda: subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True),
        within_s=max(within_s - MARGIN_S, 1),
        every_s=PAUSE_S,
        until=lambda done: done.returncode != ssh.FAILED,
    )
    if done.returncode == 0:
        return True
    said = done.stderr.strip().splitlines()
    where = f" at {address}" if address else ""
    logger.error(
        f"{host.name}: no new connection{where} could confirm the change of {change}: "
        f"{said[-1] if said else 'no reason given'}. The machine reverts it within {within_s} s"
    )
    if address:
        logger.error(
            f"  next: bring up the VPN on this controller: `minipc vpn add NAME`, `wg-quick up FILE` ({address})"
        )
    return False


def _is_pending(change: str) -> bool:
    host = context.host
    states: dict[str, FileState] = recall(FileStates, paths=announced(host, FileStates))
    return _kept(change) in states


def _kept(change: str) -> str:
    return f"{STATE}/{change}/kept"
