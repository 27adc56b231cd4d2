"""What our deploys declare, as plain data for the contestants: the same list of resources for everyone.

pyinfra keeps each operation's function and arguments in the closure that runs it; nothing else in it knows them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra.api.host import Host
from pyinfra.api.state import State

from minipc.operations import File
from minipc.operations.files import Entry
from minipc.progress import split_name


@dataclass(frozen=True)
class Operation:
    """One operation of a deploy.

    Attributes:
        kind: module and function, such as `apt.packages`.
        arguments: by parameter name, without those left at their default.
    """

    component: str
    name: str
    kind: str
    arguments: dict[str, Any]

    @property
    def label(self) -> str:
        """`redis: configure`."""
        return f"{self.component}: {self.name}"


def declared(state: State, host: Host) -> list[Operation]:
    """Every operation of the run in the order in which it would be executed; once all deploys are loaded."""
    found = []
    for op_hash in state.get_op_order():
        closure = inspect.getclosurevars(state.ops[host][op_hash].command_generator).nonlocals
        function = closure["func"]
        bound = inspect.signature(function).bind(*closure["args"], **closure["kwargs"])
        component, name = split_name(", ".join(state.get_op_meta(op_hash).names))
        kind = f"{function.__module__.rsplit('.', 1)[-1]}.{function.__name__}"
        found.append(Operation(component, name, kind, dict(bound.arguments)))
    return found


def files_of(entries: Iterable[Entry]) -> list[File]:
    """The files among the entries."""
    return [entry for entry in entries if isinstance(entry, File)]


def content(file: File) -> bytes:
    """What is in the file; `place` has rendered it."""
    if file.content is None:
        raise ValueError(f"{file.path} was not rendered")
    return file.content


def packages(operations: Sequence[Operation]) -> list[str]:
    """All Debian packages, in order, each once."""
    wanted = [name for each in operations if each.kind == "apt.packages" for name in each.arguments["packages"]]
    return list(dict.fromkeys(wanted))
