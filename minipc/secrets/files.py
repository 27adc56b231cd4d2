"""Private files: replaced atomically, 0600, one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from minipc.errors import SecretError

LOCK_WAIT_S = 10.0


def read_private(path: Path, what: str) -> bytes:
    """The content of a file that nobody else may read.

    Args:
        path: the file.
        what: what it is, for messages.

    Raises:
        SecretError: missing, not a plain file, unreadable, or accessible to group or others.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SecretError(f"{what} {path} is not a plain file", "give the path of a file with mode 0600")
            if status.st_mode & 0o077:
                raise SecretError(
                    f"{what} {path} is accessible to others (mode {stat.S_IMODE(status.st_mode):04o})",
                    f"chmod 600 {path}; if others use this machine, consider it known to them and replace it",
                )
            return file.read()
    except FileNotFoundError:
        raise SecretError(f"{what} {path} is missing", "put it there, or give its path") from None
    except OSError as error:
        raise SecretError(f"{what} {path} can't be read: {error.strerror}", "check its path and owner") from None


def write_private(path: Path, content: bytes) -> None:
    """Replaces the file, or leaves the old one untouched. Follows a symbolic link to the file itself.

    Raises:
        SecretError: it can't be written.
    """
    path = Path(os.path.realpath(path))
    try:
        temporary = _write_beside(path, content)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise SecretError(
            f"{path} can't be written: {error.strerror}", "nothing was lost; mend it, run again"
        ) from None


def create_private(path: Path, content: bytes) -> bool:
    """Creates the file; False when it is there already. Nobody ever sees a part of it.

    Raises:
        SecretError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = _write_beside(path, content)
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise SecretError(f"{path} can't be created: {error.strerror}", "mend it and run again") from None
    return True


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One writer at a time in a directory, created when missing; the lock goes with the process.

    Raises:
        SecretError: the directory can't be used, or another process holds the lock for longer than LOCK_WAIT_S.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SecretError(f"{directory} can't be used: {error.strerror}", "mend it and run again") from None
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise SecretError(f"another process is writing secrets in {directory}", "wait for it, then run again")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would block until someone writes


def _write_beside(path: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
