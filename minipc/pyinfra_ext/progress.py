"""Write pyinfra's operations to the run's event file, for the live display and the record.

Active only if `MINIPC_EVENTS` is set, as the CLI does; plain `pyinfra` runs the same deploys without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from pyinfra.api.host import Host
from pyinfra.api.state import BaseStateCallback, State

from minipc.config.components import BY_NAME
from minipc.core.variables import EVENTS_VARIABLE, PLACED_VARIABLE
from minipc.evidence.event_stream import Event, EventWriter, OperationEnd, OperationStart, Plan

_writer = EventWriter(os.environ[EVENTS_VARIABLE]) if os.environ.get(EVENTS_VARIABLE) else None
_recorded: set[int] = set()


def write_event(event: Event) -> None:
    """Append one event to the event file, if this run has one."""
    if _writer:
        _writer.write(event)


def note_placed(paths: Iterable[str]) -> None:
    """Add paths to the list of what a converge places, if this is a plan that asks for it."""
    if PLACED_VARIABLE in os.environ:
        with open(os.environ[PLACED_VARIABLE], "a", encoding="utf-8") as file:
            file.writelines(f"{path}\n" for path in paths)


def record_operations(state: State) -> None:
    """Register the timing callbacks, once per pyinfra state."""
    if _writer and id(state) not in _recorded:
        _recorded.add(id(state))
        state.add_callback_handler(_Recorder())


def split_name(name: str) -> tuple[str, str]:
    """Return component and operation of a pyinfra operation name such as `deploys/redis.py | redis | install`.

    >>> split_name("deploys/redis.py | redis | install")
    ('redis', 'install')
    """
    parts = [part for part in name.split(" | ") if not part.endswith(".py")]
    component = next((part for part in parts if part in BY_NAME), "")
    return component, " | ".join(part for part in parts if part != component)


class _Recorder(BaseStateCallback):
    """Measure the time of operations. `did_change` is only complete in `operation_end` (pyinfra 3.10)."""

    def __init__(self) -> None:
        self._planned = False
        self._started: dict[str, float] = {}

    def operation_start(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        if not self._planned:
            self._planned = True
            names = [_split(state, each) for each in state.get_op_order()]
            write_event(Plan(operations=len(names), components=tuple(dict.fromkeys(each for each, _ in names))))
        self._started[op_hash] = time.time()
        component, name = _split(state, op_hash)
        write_event(OperationStart(component=component, name=name))

    def operation_host_error(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        # pyinfra ends the run without `operation_end` when the last host has failed.
        self._ended(state, op_hash, changed=False, ok=False)

    def operation_end(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        if op_hash in self._started:
            metas = [data[op_hash].operation_meta for data in state.ops.values() if op_hash in data]
            self._ended(state, op_hash, changed=any(meta.did_change() for meta in metas if meta.is_complete()), ok=True)

    def _ended(self, state: State, op_hash: str, *, changed: bool, ok: bool) -> None:
        component, name = _split(state, op_hash)
        seconds = round(time.time() - self._started.pop(op_hash), 4)
        write_event(OperationEnd(component=component, name=name, changed=changed, ok=ok, seconds=seconds))


def _split(state: State, op_hash: str) -> tuple[str, str]:
    return split_name(", ".join(sorted(state.get_op_meta(op_hash).names)))
