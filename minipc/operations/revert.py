"""A change that could lock everybody out is taken back by the machine itself, unless we confirm it over a new
connection (docs/concepts/two-doors.md).

    place(…, change="firewall")     remembers the files as they were before it replaces them, and starts the clock
    arm(…, change="firewall")       says how the old files take effect again; the clock begins anew
    unit(…)                         the change takes effect
    confirm(…, change="firewall")   a new connection, and the clock stops

Nothing changed: none of it runs a command. A controller that dies in between confirms nothing, so it is taken back.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Generator

from pyinfra import context, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta
from pyinfra.api.state import State

from minipc import ssh
from minipc.facts.files import FileState, FileStates
from minipc.facts.memory import announce, announced

REVERT = "/usr/local/lib/minipc/revert"
STATE = "/var/lib/minipc/revert"
# Of the time there is, so much is left for the machine to be asked again by hand.
MARGIN_S = 10
PAUSE_S = 0.5

_clock_runs: set[tuple[str, str]] = set()


def arm(name: str, change: str, undo: str) -> OperationMeta:
    """Before the change takes effect: the clock begins anew, now that it is known how to take it back.

    Args:
        change: the same word as in `place(change=…)`.
        undo: shell command that has the old files take effect again.
    """
    announce(context.host, FileStates, [_kept(change)])
    return armed(name=name, change=change, undo=undo)


def confirm(name: str, change: str, within_s: int, address: str | None = None) -> OperationMeta:
    """After the change took effect: connects anew, and stops the clock over that connection.

    Args:
        within_s: how long the machine waits before it takes the change back.
        address: where the machine must answer; None: where it did before.
    """
    announce(context.host, FileStates, [_kept(change)])
    return confirmed(name=name, change=change, within_s=within_s, address=address)


@operation()
def armed(change: str, undo: str) -> Generator[StringCommand | FunctionCommand, None, None]:
    """Starts the clock, when files were replaced that nobody has confirmed."""
    if _is_pending(change):
        yield clock_starts(change)
        yield StringCommand(REVERT, "arm", change, shlex.quote(undo))


@operation()
def confirmed(change: str, within_s: int, address: str | None) -> Generator[FunctionCommand, None, None]:
    """Confirms, when there is something to confirm."""
    # Whoever lost the connection and has it back finds nothing pending: the machine took the change back meanwhile.
    if (context.host.name, change) in _clock_runs or _is_pending(change):
        yield FunctionCommand(_connect_and_confirm, (change, within_s, address), {})


def clock_starts(change: str) -> FunctionCommand:
    """Remembers here that it runs there: a change that was taken back meanwhile is then not taken for confirmed."""
    return FunctionCommand(_remember, (change,), {})


def _remember(state: State, host: Host, change: str) -> bool:
    _clock_runs.add((host.name, change))
    return True


def _connect_and_confirm(state: State, host: Host, change: str, within_s: int, address: str | None) -> bool:
    """Whether the machine took the confirmation, over a connection of its own."""
    config = ssh.write_config([(host.name, host.data.dict())])
    options = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=5"]
    if address:
        options += ["-o", f"HostName={address}", "-o", f"HostKeyAlias={host.name}"]
    argv = ["ssh", "-F", str(config), *options, host.name, "--", f"{REVERT} confirm {change}"]
    give_up_at = time.monotonic() + max(within_s - MARGIN_S, 1)
    done: subprocess.CompletedProcess[str] | None = None
    while done is None or (done.returncode == ssh.FAILED and time.monotonic() < give_up_at):
        if done is not None:
            time.sleep(PAUSE_S)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return True
    said = done.stderr.strip().splitlines()
    where = f" at {address}" if address else ""
    logger.error(
        f"{host.name}: after the change of {change} no new connection{where} confirmed it: "
        f"{said[-1] if said else 'no reason given'}. The machine takes it back within {within_s} s"
    )
    if address:
        logger.error(
            f"  next: is the tunnel up on this controller? `minipc vpn add NAME`, `wg-quick up FILE` ({address})"
        )
    return False


def _is_pending(change: str) -> bool:
    host = context.host
    states: dict[str, FileState] = host.get_fact(FileStates, paths=announced(host, FileStates))
    return _kept(change) in states


def _kept(change: str) -> str:
    return f"{STATE}/{change}/kept"
