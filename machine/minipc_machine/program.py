"""Start a program, end it with an exit code, and say what failed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# The same numbers as in minipc/core/errors.py. 2 means "changes pending", which no program here reports.
EXIT_PASS, EXIT_FAIL, EXIT_REFUSED, EXIT_COULD_NOT_VERIFY = 0, 1, 3, 4


class FailedError(Exception):
    """An expected failure. Its text says what was wrong and what to do next; `code` becomes the exit code."""

    def __init__(self, text: str, code: int = EXIT_FAIL) -> None:
        super().__init__(text)
        self.code = code


def start(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a program with the arguments of the command line and exit with its code.

    A FailedError is printed as one line, `NAME: what was wrong`, which minipc shows to the operator.
    """
    try:
        code = main(sys.argv[1:])
    except FailedError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        code = error.code
    sys.exit(code)


def say(text: str) -> None:
    """Print a line at once: to the journal, or to the terminal."""
    print(text, flush=True)
