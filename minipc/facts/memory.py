"""A fact that was asked before is answered from memory, until something is run on the machine.

pyinfra 3.10 has no fact cache: six components that install packages list all packages six times, and each operation
asks for its own unit and its own files. All of them are declared before the first one runs, so the first that asks can
ask for all (`announce`); an operation that changes nothing then costs no remote command (docs/reference/benchmarks.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from pyinfra.api import StringCommand
from pyinfra.api.host import Host

_announced: dict[tuple[str, type], dict[str, None]] = defaultdict(dict)


def announce(host: Host, fact: type, keys: Iterable[str]) -> None:
    """Says which paths, units, … this run will ask the fact about."""
    _announced[host.name, fact].update(dict.fromkeys(keys))


def announced(host: Host, fact: type) -> list[str]:
    """Everything announced so far, in that order."""
    return list(_announced[host.name, fact])


def remember_facts(host: Host) -> None:
    """From now on the host remembers what facts' commands printed, and forgets all of it when anything else is run."""
    answers: dict[str, Any] = {}
    asking = [0]
    get_fact, run_shell_command = host.get_fact, host.run_shell_command

    def ask(*args: Any, **kwargs: Any) -> Any:
        asking[0] += 1
        try:
            return get_fact(*args, **kwargs)
        finally:
            asking[0] -= 1

    def run(command: Any, *args: Any, **kwargs: Any) -> Any:
        if not asking[0]:
            answers.clear()
            return run_shell_command(command, *args, **kwargs)
        text = command.get_raw_value() if isinstance(command, StringCommand) else command
        # By stage: whoever is asked to confirm a plan may take an hour.
        question = f"{host.state.current_stage} {text} {args} {sorted(kwargs.items())}"
        if question not in answers:
            succeeded, output = run_shell_command(command, *args, **kwargs)
            if not succeeded:
                return succeeded, output
            answers[question] = succeeded, output
        return answers[question]

    def forgetting(transfer: Callable[..., Any]) -> Callable[..., Any]:
        def send(*args: Any, **kwargs: Any) -> Any:
            answers.clear()
            return transfer(*args, **kwargs)

        return send

    host.get_fact = ask  # type: ignore[method-assign]
    host.run_shell_command = run  # type: ignore[method-assign]
    host.put_file = forgetting(host.put_file)  # type: ignore[method-assign]
    host.rsync = forgetting(host.rsync)  # type: ignore[method-assign]
