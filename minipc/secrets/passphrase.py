"""Read a passphrase from a prompt, a file, a descriptor or standard input; never from an argument or a variable."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

import click

from minipc.core.errors import SecretError
from minipc.core.files import read_private

_MAX_BYTES = 4096


def read_passphrase(file: Path | None, descriptor: int | None, *, new: bool, of: str = "the bundle") -> str:
    """Return the passphrase.

    Args:
        file: private file (0600) that contains it.
        descriptor: open file descriptor to read it from.
        new: whether it is a new passphrase, so that the prompt asks twice.
        of: what it opens, for the prompt.

    Raises:
        SecretError: it is empty, has several lines or is not text, or the source cannot be read.
    """
    if file is not None:
        return read_from_file(file)
    if descriptor is not None:
        return read_from_descriptor(descriptor)
    if _is_terminal():
        text: str = click.prompt(f"{'new ' if new else ''}passphrase of {of}", hide_input=True, confirmation_prompt=new)
        return _checked(text.encode(), "the prompt")
    return _checked(sys.stdin.buffer.read(_MAX_BYTES + 1), "standard input")


def read_from_file(file: Path) -> str:
    """Return the passphrase in a private file (0600). Raises SecretError."""
    return _checked(read_private(file, "the passphrase file"), str(file))


def read_from_descriptor(descriptor: int) -> str:
    """Return the passphrase from an open file descriptor, which stays open. Raises SecretError."""
    try:
        with os.fdopen(os.dup(descriptor), "rb") as source:
            content = source.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SecretError(
            f"descriptor {descriptor} cannot be read: {error.strerror}", "open it, for example with 3<FILE"
        ) from None
    return _checked(content, f"descriptor {descriptor}")


def ask_on_terminal(question: str, next_step: str) -> str:
    """Return what a person types on the terminal, without echo. Standard input is not touched: it may be a pipe.

    Args:
        next_step: what the operator does if there is no terminal.

    Raises:
        SecretError: there is no terminal, or nothing was typed.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise SecretError(f"cannot ask for the {question}: there is no terminal", next_step) from None
    try:
        text = getpass.getpass(f"{question}: ")
    except EOFError:
        text = ""
    return _checked(text.encode(errors="replace"), "the terminal")


def _checked(content: bytes, where: str) -> str:
    problem = ""
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text, problem = "", "is not UTF-8 text"
    if not problem and not text:
        problem = "is empty"
    elif not problem and (len(content) > _MAX_BYTES or len(text.splitlines()) > 1):
        problem = "is more than one line"
    if problem:
        raise SecretError(f"the passphrase from {where} {problem}", "give only the passphrase")
    return text


def _is_terminal() -> bool:
    return sys.stdin.isatty()
