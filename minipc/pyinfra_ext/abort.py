"""End a pyinfra run from inside a deploy, with the error's exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

from pyinfra import logger

from minipc.core.errors import MinipcError, RefusedError
from minipc.evidence.event_stream import Note, Refused
from minipc.pyinfra_ext.progress import write_event


def stop(error: MinipcError) -> NoReturn:
    """End the run immediately with the error's exit code. pyinfra would exit with 1 and print a traceback."""
    if isinstance(error, RefusedError):
        write_event(Refused(reason=str(error)))
    else:
        write_event(Note(text=str(error)))
    logger.error(str(error))
    sys.exit(error.exit_code)
