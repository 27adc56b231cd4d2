"""Sums of what an import brought: rows of tables and files of a folder, the same on both sides.

The controller sends the text of this module to the machine, which has another version of it or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable

_MODULUS = 1 << 128


class Rows:
    """Number and checksum of rows, in any order: each is a line as COPY writes it."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, line: bytes) -> None:
        """Add a row, without the line break."""
        self.count += 1
        self._sum = (self._sum + int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "big")) % _MODULUS

    @property
    def checksum(self) -> str:
        """Return 32 hexadecimal digits."""
        return f"{self._sum:032x}"


def rows(lines: Iterable[bytes]) -> Rows:
    """Return the sum of lines."""
    found = Rows()
    for line in lines:
        found.add(line.rstrip(b"\n"))
    return found


def files(folder: str) -> dict[str, str]:
    """Return each regular file of a folder with size and SHA-256; symbolic links are not followed.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW) if not os.path.islink(path) else None
            if handle is None:
                continue
            with open(handle, "rb") as file:
                about = os.fstat(file.fileno())
                if stat.S_ISREG(about.st_mode):
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    found[os.path.relpath(path, folder)] = f"{about.st_size} {digest}"
    return found


def tables(psql: list[str], statements: dict[str, str]) -> dict[str, dict[str, object]]:
    """Return number and checksum of the rows that each COPY statement writes.

    Raises:
        subprocess.CalledProcessError: one failed.
    """
    found: dict[str, dict[str, object]] = {}
    for name, statement in statements.items():
        with subprocess.Popen([*psql, "-c", statement], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
            summed = rows(running.stdout or ())
        if running.returncode:
            raise subprocess.CalledProcessError(running.returncode, "psql")
        found[name] = {"count": summed.count, "checksum": summed.checksum}
    return found


if __name__ == "__main__":
    if sys.argv[1] == "files":
        print(json.dumps(files(sys.argv[2])))
    else:
        print(json.dumps(tables(sys.argv[2:], json.load(sys.stdin))))
