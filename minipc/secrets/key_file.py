"""Read and write the key file, which a passphrase may protect (age, scrypt). A run asks for the passphrase once.

`age -d -i KEY` opens a protected key file too, and asks for the same passphrase.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from minipc import config
from minipc.core.environment import Environment
from minipc.core.errors import SecretError
from minipc.core.files import read_private, replace_private, write_private
from minipc.secrets.passphrase import ask_on_terminal, read_from_descriptor, read_from_file
from minipc.secrets.sealed import check_passphrase, is_sealed, open_sealed, seal

FILE_VARIABLE = "MINIPC_AGE_PASSPHRASE_FILE"
DESCRIPTOR_VARIABLE = "MINIPC_AGE_PASSPHRASE_FD"
_WHAT = "the age key"
_NO_TERMINAL = (
    "run the command in a terminal; for unattended use, give a file (0600) with the passphrase in "
    f"${FILE_VARIABLE}, or an open file descriptor in ${DESCRIPTOR_VARIABLE}"
)
_FORGOTTEN = (
    "try again; if the passphrase is forgotten or the file damaged, move the file away and open the break-glass bundle "
    "(`minipc bundle open FILE`)"
)

# Sealed content -> (content, passphrase): opening takes a second of work, and a run reads the key many times.
_opened: dict[bytes, tuple[bytes, str]] = {}
_asking = threading.Lock()


def read_key(path: Path) -> bytes:
    """Return the content of a key file; ask for the passphrase if one protects it and this run did not ask yet.

    Raises:
        SecretError: it is missing, accessible to others or damaged, the passphrase is wrong, or nobody can be asked.
    """
    content = _read(path)
    return _open(path, content)[0] if is_sealed(content) else content


def write_key(path: Path, content: bytes) -> None:
    """Replace a key file. The new one has the same protection as the old one.

    Raises:
        SecretError: as in `read_key`, or it cannot be written; the old file is unchanged.
    """
    old = _read(path)
    if not is_sealed(old):
        write_private(path, content)
    else:
        _replace(path, content, _open(path, old)[1])


def is_protected(path: Path) -> bool:
    """Return whether a passphrase protects the key file; ask for nothing.

    Raises:
        SecretError: it is missing or accessible to others.
    """
    return is_sealed(_read(path))


def protect(path: Path, passphrase: str | None) -> None:
    """Give the key file a new passphrase, or remove it with None. The old file stays until the new one was opened.

    Raises:
        SecretError: as in `read_key`; the new passphrase can be guessed; the file cannot be written.
    """
    if passphrase is not None:
        check_passphrase(passphrase)
    _replace(path, read_key(path), passphrase)


@contextlib.contextmanager
def handed_on(environment: Environment) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """Yield variables and descriptors for a program of ours, with which it opens the key file without asking again.

    Both are empty if no passphrase is needed. The descriptor can be read once.

    Raises:
        SecretError: as in `read_key`.
    """
    path = environment.age_key_file
    content = read_private(path, _WHAT) if path.is_file() else b""
    if not is_sealed(content) or not _uses_age(environment):
        yield {}, ()
        return
    passphrase = _open(path, content)[1]
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(passphrase.encode())  # at most 4096 bytes, which a pipe always takes
        yield {DESCRIPTOR_VARIABLE: str(reading)}, (reading,)
    finally:
        os.close(reading)


def _uses_age(environment: Environment) -> bool:
    return not environment.in_repository or config.load(environment.name).secrets.backend == "age"


def _read(path: Path) -> bytes:
    if not path.exists():
        raise SecretError(
            f"the age key {path} is missing",
            "put the key there (a copy is in the break-glass bundle), or give its path in $MINIPC_AGE_KEY_FILE; "
            "`minipc secrets init` makes the first one",
        )
    return read_private(path, _WHAT)


def _open(path: Path, sealed: bytes) -> tuple[bytes, str]:
    with _asking:
        if sealed not in _opened:
            passphrase = _passphrase(path)
            try:
                _opened[sealed] = (open_sealed(sealed, passphrase), passphrase)
            except SecretError as error:
                raise SecretError(f"the age key {path}: {error.what}", _FORGOTTEN) from None
        return _opened[sealed]


def _passphrase(path: Path) -> str:
    descriptor, file = os.environ.get(DESCRIPTOR_VARIABLE), os.environ.get(FILE_VARIABLE)
    if descriptor:
        if not descriptor.isascii() or not descriptor.isdecimal():
            raise SecretError(f"${DESCRIPTOR_VARIABLE} is not a number", "give the number of an open file descriptor")
        return read_from_descriptor(int(descriptor))
    if file:
        return read_from_file(Path(file).expanduser())
    return ask_on_terminal(f"passphrase of the age key {path}", _NO_TERMINAL)


def _replace(path: Path, content: bytes, passphrase: str | None) -> None:
    def check(written: bytes) -> None:
        opened = written if passphrase is None else open_sealed(written, passphrase)
        if opened != content:
            raise SecretError(f"{path}: what was written is not what was read again", "check the disk of this computer")
        if passphrase is not None:
            _opened[written] = (content, passphrase)

    replace_private(path, content if passphrase is None else seal(content, passphrase), check)
