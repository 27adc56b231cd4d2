"""Files: hash, replace atomically, keep private (0600), lock between processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from minipc.core.errors import MinipcError, SecretError
from minipc.core.polling import wait_until


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file; after a crash it is either the old one or the new one. A symbolic link is followed.

    Raises:
        OSError: it cannot be written; the old file is unchanged and nothing else is left.
    """
    path = Path(os.path.realpath(path))
    temporary = _write_temporary(path, content, mode)
    try:
        move_into_place(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a complete file to its final name and flush both to disk. Raises OSError."""
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def write_private(path: Path, content: bytes) -> None:
    """Replace a private file (0600) as `write_atomic` does.

    Raises:
        SecretError: it cannot be written; the old file is unchanged.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        raise SecretError(
            f"{path} cannot be written: {error.strerror}",
            "the old file is unchanged; fix the cause and run the command again",
        ) from None


def replace_private(path: Path, content: bytes, check: Callable[[bytes], None]) -> None:
    """Replace a private file (0600), after the new one was flushed to disk and read again. Nothing is left if it fails.

    Args:
        check: called with what was read again; raises if the old file must stay.

    Raises:
        SecretError: it cannot be written; the old file is unchanged.
    """
    path = Path(os.path.realpath(path))
    temporary = None
    try:
        temporary = _write_temporary(path, content, 0o600)
        _flush(temporary)
        check(read_private(temporary, "the new file"))
        temporary.replace(path)
        temporary = None
        _flush(path.parent)
    except OSError as error:
        raise SecretError(
            f"{path} cannot be written: {error.strerror}",
            "the old file is unchanged; fix the cause and run the command again",
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def create_private(path: Path, content: bytes) -> bool:
    """Create a private file (0600) with its folder; return False if it exists. No reader ever sees a part of it.

    Raises:
        SecretError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = _write_temporary(path, content, 0o600)
        try:
            _flush(temporary)
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _flush(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise SecretError(
            f"{path} cannot be created: {error.strerror}", "fix the cause and run the command again"
        ) from None
    return True


def read_private(path: Path, what: str) -> bytes:
    """Return the content of a file that only its owner may access.

    Args:
        what: what the file is, for error messages.

    Raises:
        SecretError: it is missing, not a regular file, unreadable, or accessible to group or others.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SecretError(f"{what} {path} is not a regular file", "give the path of a file with mode 0600")
            if status.st_mode & 0o077:
                raise SecretError(
                    f"{what} {path} is accessible to others (mode {stat.S_IMODE(status.st_mode):04o})",
                    f"chmod 600 {path}; if other people use this computer, replace the secret as well",
                )
            return file.read()
    except FileNotFoundError:
        raise SecretError(f"{what} {path} is missing", "put the file there, or give its path") from None
    except OSError as error:
        raise SecretError(f"{what} {path} cannot be read: {error.strerror}", "check its path and owner") from None


@contextlib.contextmanager
def lock(path: Path, wait_s: float) -> Iterator[None]:
    """Hold an exclusive lock on a directory or a lock file; other threads and processes wait.

    The lock is released when the process ends. It is polled: a blocking flock would stop pyinfra's other greenlets,
    among them the one that holds the lock.

    Args:
        path: an existing directory, or a lock file, which is created and never removed.
        wait_s: longest wait, seconds.

    Raises:
        MinipcError: another process held the lock all the time, or the path cannot be used.
    """
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise MinipcError(f"{path} cannot be locked: {error.strerror}", "check its path and owner") from None
    try:
        if not wait_until(lambda: _try_lock(handle), within_s=wait_s, every_s=0.05):
            raise MinipcError(
                f"{path} has been locked by another process for {wait_s:g} s",
                f"wait for it and run the command again; `fuser {path}` shows the process",
            )
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
    return os.open(path, flags | os.O_NONBLOCK)  # opening a FIFO would block until someone writes


def _write_temporary(path: Path, content: bytes, mode: int) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created with mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
