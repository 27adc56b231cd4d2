"""Errors an operator sees: what was wrong, where, and what to do next. The CLI turns them into exit codes.

Exit codes: 0 pass, 1 fail, 2 changes pending, 3 refused by a guard, 4 could not verify.
"""

from __future__ import annotations

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_CHANGES_PENDING = 2
EXIT_REFUSED = 3
EXIT_COULD_NOT_VERIFY = 4


class MinipcError(Exception):
    """An expected failure.

    Args:
        what: what was wrong and where, one sentence, never a secret value.
        next_step: what the operator does next, one sentence or a command.
    """

    exit_code = EXIT_FAIL

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.what}\n  next: {self.next_step}" if self.next_step else self.what


class ConfigError(MinipcError):
    """The configuration (group_data, inventory, secrets layout) is wrong; nothing was changed."""


class SecretError(MinipcError):
    """A secret is missing or cannot be decrypted; the message names the key or path, never the value."""


class MissingPrerequisiteError(MinipcError):
    """A program, privilege or kernel feature that the command needs is not there."""


class RefusedError(MinipcError):
    """A guard refused: doing it could destroy something or hit the wrong machine."""

    exit_code = EXIT_REFUSED


class CouldNotVerifyError(MinipcError):
    """The check itself could not run, so there is neither a pass nor a fail."""

    exit_code = EXIT_COULD_NOT_VERIFY
