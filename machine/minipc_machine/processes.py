"""Run other programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from minipc_machine.program import FailedError

DAY_S = 86400
# How many lines of its output an error quotes.
TAIL_LINES = 6


class CommandError(FailedError):
    """A program ended with an error.

    Attributes:
        returncode: its exit code.
    """

    def __init__(self, text: str, returncode: int) -> None:
        super().__init__(text)
        self.returncode = returncode


def run(
    argv: Sequence[str],
    timeout_s: float = DAY_S,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    accepted: Sequence[int] = (0,),
) -> str:
    """Run a program and return its standard output.

    Args:
        env: variables added to PATH and LC_ALL; the program gets no others.
        accepted: exit codes that are not an error.

    Raises:
        CommandError: it ended with another code; the text has the end of its output, without its options.
        FailedError: it can't be started, or did not end within `timeout_s`.
    """
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd="/",
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{argv[0]}: did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise FailedError(f"{argv[0]} cannot be started: {error.strerror}") from None
    if done.returncode not in accepted:
        output = (done.stderr.strip() + "\n" + done.stdout.strip()).strip().splitlines()
        tail = " | ".join(map(_printable, output[-TAIL_LINES:]))
        raise CommandError(f"{_short(argv)} ended with {done.returncode}: {tail}", done.returncode)
    return done.stdout


def _printable(line: str) -> str:
    """Return a line without control characters: a service chooses what its database and its migrations print."""
    return "".join(each if each.isprintable() else "?" for each in line)[:500]


def _short(argv: Sequence[str]) -> str:
    """Return the command without its options, which may be secret."""
    words = argv[argv.index("--") + 1 :] if "--" in argv else argv
    return _printable(" ".join(word for word in words if not word.startswith("-")))[:120]
