"""Facts that are asked once until an operation changes something on the machine.

pyinfra 3.10 has no fact cache: each operation asks for its own files and its own unit. All operations are declared
before the first one runs, so the first that asks can ask for all (`announce`), and `recall` gives the others the same
answer. A converge that changes nothing needs far fewer remote commands (docs/decisions/0050-facts-are-recalled.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from pyinfra import context
from pyinfra.api import FactBase
from pyinfra.api.host import Host
from pyinfra.api.state import BaseStateCallback, State

_announced: dict[tuple[str, type], dict[str, None]] = defaultdict(dict)


class _Memory(BaseStateCallback):
    """Answers by host; pyinfra's callback after each operation removes those of the hosts that it changed."""

    def __init__(self) -> None:
        self.answers: dict[str, dict[object, Any]] = defaultdict(dict)

    def operation_end(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        for host, operations in state.ops.items():
            if op_hash in operations and operations[op_hash].operation_meta.executed:
                self.answers.pop(host.name, None)


_memories: WeakKeyDictionary[State, _Memory] = WeakKeyDictionary()


def announce(host: Host, fact: type, keys: Iterable[str]) -> None:
    """Say which paths, units, … this run will ask the fact about."""
    _announced[host.name, fact].update(dict.fromkeys(keys))


def announced(host: Host, fact: type) -> list[str]:
    """Return everything announced so far, in that order."""
    return list(_announced[host.name, fact])


def remember_facts(state: State) -> None:
    """Keep the answers of `recall` from now on. Without this call each one is asked."""
    if state not in _memories:
        _memories[state] = _Memory()
        state.add_callback_handler(_memories[state])


def recall(fact: type[FactBase[Any]], **arguments: Any) -> Any:
    """Return a fact about the current host, as it was since the last operation that changed something there.

    Only at the start of an operation: what its own commands change is not seen.
    """
    host = context.host
    memory = _memories.get(host.state) if isinstance(getattr(host, "state", None), State) else None
    if memory is None:
        return host.get_fact(fact, **arguments)
    answers = memory.answers[host.name]
    # By stage: somebody who is asked to confirm a plan may take an hour.
    question = (host.state.current_stage, fact, repr(sorted(arguments.items())))
    if question not in answers:
        answers[question] = host.get_fact(fact, **arguments)
    return answers[question]
