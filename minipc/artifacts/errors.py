"""What can go wrong with an upstream file: it can't be had, or it is not the file it should be."""

from __future__ import annotations

from minipc.errors import CouldNotVerifyError, MinipcError


class UnobtainableError(CouldNotVerifyError):
    """The file can't be had now (offline, 404, refused redirect); whatever needs it is not exercised."""


class HashMismatchError(MinipcError):
    """A file is not the one that was promised. Never ignored, whoever asked."""
