"""Ends a pyinfra run from inside a deploy, with our exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

from pyinfra import logger

from minipc.errors import MinipcError, RefusedError
from minipc.progress import write_event
from minipc.timeline import Note, Refused


def stop(error: MinipcError) -> NoReturn:
    """Ends the run at once with the error's exit code; pyinfra itself would turn it into 1 and a traceback."""
    if isinstance(error, RefusedError):
        write_event(Refused(reason=str(error)))
    else:
        write_event(Note(text=str(error)))
    logger.error(str(error))
    sys.exit(error.exit_code)
