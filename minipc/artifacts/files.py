"""Files that are whole or not there: hashing, atomic writes, a lock between threads and processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc.errors import MinipcError

CHUNK = 1 << 20  # bytes
# Longer than any one download may take.
_LOCK_TIMEOUT = 2 * 3600.0  # seconds


def sha256_of(path: Path) -> str:
    """sha256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Replaces a file; a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
        temporary.chmod(mode)
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(temporary: Path, path: Path) -> None:
    """Gives a finished file its final name, on the disk as well."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, timeout: float = _LOCK_TIMEOUT) -> Iterator[None]:
    """Holds a lock file; another thread or process waits for it.

    It polls: a blocking flock would stop pyinfra's other greenlets, among them the one that holds the lock.

    Args:
        path: the lock file, created when missing, never removed.
        timeout: seconds to wait.

    Raises:
        MinipcError: someone held it all the time.
    """
    deadline = time.monotonic() + timeout
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise MinipcError(
                        f"{path} was held by another process for {timeout:.0f} s", f"`fuser {path}` shows which"
                    ) from None
                time.sleep(0.05)
        yield
