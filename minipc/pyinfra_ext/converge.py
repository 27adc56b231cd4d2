"""Run pyinfra as a user would, in a separate process, and keep its output.

There is only one way to converge: this is the command that a person types, with `-y`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, EXIT_REFUSED, MinipcError, RefusedError
from minipc.core.formatting import first_line
from minipc.core.paths import ROOT
from minipc.core.variables import EVENTS_VARIABLE
from minipc.evidence.event_stream import Refused, read
from minipc.pyinfra_ext.progress import split_name
from minipc.secrets.key_file import handed_on

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TAIL_LINES = 25
# How our programs on the machine print the reason of a failure (`start` in machine/minipc_machine/program.py).
_OWN_PROGRAM = re.compile(r"(?:^|\s)(?:restore|stanza|backup|drill): (\S.*)$")


class ConvergeError(MinipcError):
    """pyinfra ended with an error. The message contains the last lines of its output."""

    def __init__(self, what: str, next_step: str, exit_code: int) -> None:
        super().__init__(what, next_step)
        self.exit_code = exit_code


@dataclass(frozen=True)
class PendingChange:
    """An operation that would change something."""

    component: str
    name: str


def pyinfra_command(environment: Environment, files: Sequence[str], *options: str) -> list[str]:
    """Return the pyinfra command, as a person would type it."""
    relative = [os.path.relpath(file, ROOT) for file in files]
    inventory = os.path.relpath(environment.inventory_file, ROOT)
    return [str(Path(sys.executable).parent / "pyinfra"), *options, inventory, *relative]


def converge(
    environment: Environment,
    files: Sequence[str],
    *,
    log: Path,
    events: Path | None = None,
    limit: str | None = None,
    options: Sequence[str] = (),
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> None:
    """Converge the machines of an inventory.

    Args:
        files: deploy files, in order.
        log: file for everything that pyinfra prints.
        events: file for the deploys' events (see `minipc/evidence/event_stream.py`).
        options: more pyinfra options, such as `--data key=value`.
        prefix: words before the command, such as `ip netns exec operator`.

    Raises:
        RefusedError: a guard in the deploys refused; nothing was changed.
        ConvergeError: an operation failed, the connection broke, or the run was interrupted.
    """
    command = [*prefix, *pyinfra_command(environment, files, "-y", *(["--limit", limit] if limit else []), *options)]
    known = len(_refusals(events))
    variables = os.environ | (env or {}) | ({EVENTS_VARIABLE: str(events)} if events else {})
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        with handed_on(environment) as (key, descriptors):
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables | key,
                pass_fds=descriptors,
            )
            try:
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait(timeout=20)
                raise
    if code:
        refusals = _refusals(events)[known:]
        raise _failure(code, _said(log, start), log, command, refusals[-1].reason if refusals else "")


def _refusals(events: Path | None) -> list[Refused]:
    return [event for event in read(events) if isinstance(event, Refused)] if events and events.exists() else []


def plan(
    environment: Environment, files: Sequence[str], *, limit: str | None = None, env: dict[str, str] | None = None
) -> tuple[list[PendingChange], str]:
    """Return what a converge would change, and the diff without secrets. Change nothing.

    Raises:
        RefusedError: a guard refused.
        ConvergeError: pyinfra failed.
    """
    # Never with -y: `--dry -y` reports no changes at all (pyinfra 3.10).
    options = ["--dry", "--json", "--diff", *(["--limit", limit] if limit else [])]
    command = pyinfra_command(environment, files, *options)
    with handed_on(environment) as (key, descriptors):
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=os.environ | (env or {}) | key,
            pass_fds=descriptors,
        )
    said = _ANSI.sub("", done.stderr)
    if done.returncode:
        raise _failure(done.returncode, said, None, command)
    return pending_changes(json.loads(done.stdout)), _diff_lines(said)


def pending_changes(payload: dict[str, Any]) -> list[PendingChange]:
    """Return the operations that have changes in pyinfra's JSON."""
    return [
        PendingChange(*split_name(operation["names"][0]))
        for operation in payload["plan"]
        if operation["hosts_with_change"] or operation["hosts_with_conditional_change"]
    ]


def _diff_lines(said: str) -> str:
    """Return what operations logged while pyinfra prepared, without pyinfra's headings."""
    ours = ("-->", "    Loading: ", "    [")
    keep = (line for line in said.splitlines() if not line.startswith(ours) or "place " in line)
    return "\n".join(line for line in keep if line.strip())


def _said(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return _ANSI.sub("", file.read().decode(errors="replace"))


def _failure(code: int, said: str, log: Path | None, command: Sequence[str], refusal: str = "") -> MinipcError:
    lines = said.rstrip().splitlines()
    tail = "\n".join(f"  | {line}" for line in lines[-_TAIL_LINES:])
    where = f"\n{tail}" + (f"\n  log: {log}" if log else "")
    if code == EXIT_REFUSED:
        reason = f": {first_line(refusal)}" if refusal else ""
        return RefusedError(f"a guard refused, nothing was changed{reason}{where}", "")
    again = "fix the cause and run the same command again; it continues where it stopped"
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    started = [line for line in lines if "Starting operation: " in line]
    during = f" during `{started[-1].split('operation: ')[1].strip()}`" if started else ""
    # The program's message comes first, because a record shows it as the reason.
    reasons = [found[1] for line in lines if (found := _OWN_PROGRAM.search(line))]
    reason = f"{reasons[-1]}\n" if reasons else ""
    return ConvergeError(f"{reason}pyinfra {how}{during}{where}", again, EXIT_FAIL)
