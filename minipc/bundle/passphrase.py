"""The passphrase: asked for, or read from a file, a descriptor or standard input; never an argument or a variable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from minipc.errors import SecretError
from minipc.secrets.files import read_private

_MAX_BYTES = 4096


def read_passphrase(file: Path | None, descriptor: int | None, *, new: bool) -> str:
    """One line.

    Args:
        file: private file (0600) with it.
        descriptor: open file descriptor to read it from.
        new: whether it is for a new bundle, and so asked for twice.

    Raises:
        SecretError: empty, several lines, not text, or the source can't be read.
    """
    if file is not None:
        return _checked(read_private(file, "the passphrase file"), str(file))
    if descriptor is not None:
        return _checked(_from_descriptor(descriptor), f"descriptor {descriptor}")
    if _is_terminal():
        text: str = click.prompt("passphrase of the bundle", hide_input=True, confirmation_prompt=new)
        return _checked(text.encode(), "what was typed")
    return _checked(sys.stdin.buffer.read(_MAX_BYTES + 1), "standard input")


def _from_descriptor(descriptor: int) -> bytes:
    try:
        with os.fdopen(os.dup(descriptor), "rb") as source:
            return source.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SecretError(
            f"descriptor {descriptor} can't be read: {error.strerror}", "open it, for example with 3<FILE"
        ) from None


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
        raise SecretError(f"the passphrase from {where} {problem}", "give exactly the passphrase")
    return text


def _is_terminal() -> bool:
    return sys.stdin.isatty()
