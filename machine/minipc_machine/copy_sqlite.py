"""Make a consistent copy of a SQLite file that is in use: copy-sqlite SOURCE COPY.

`backup` runs this as the account that owns the volume, with no other rights: the file is whatever the service made of
it, and opening it may write to its journal.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from urllib.parse import quote

from minipc_machine.program import EXIT_PASS, FailedError

BUSY_S = 60


def main(arguments: list[str]) -> int:
    """Copy the file and check the copy. Raises FailedError if it is not an intact SQLite file."""
    if len(arguments) != 2:
        raise FailedError("usage: copy-sqlite SOURCE COPY")
    source, copy = arguments
    try:
        with closing(_open(source, "ro")) as live, closing(_open(copy, "rwc")) as made:
            # All pages in one step: a copy in several would begin again at each write of the service.
            live.backup(made)
            found = made.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise FailedError(f"it can't be copied as a SQLite file: {error}") from None
    if found != ("ok",):
        raise FailedError(f"it is damaged: {str(found[0])[:200]}")
    return EXIT_PASS


def _open(path: str, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path, errors='surrogateescape')}?mode={mode}", uri=True, timeout=BUSY_S)
