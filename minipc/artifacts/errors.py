"""Errors about upstream files: one cannot be obtained, or one is not the expected file."""

from __future__ import annotations

from minipc.core.errors import CouldNotVerifyError, MinipcError


class UnobtainableError(CouldNotVerifyError):
    """The file cannot be obtained now (offline, 404, refused redirect); what needs it is NOT EXERCISED."""


class HashMismatchError(MinipcError):
    """A file does not have the expected hash. Callers never ignore this."""
