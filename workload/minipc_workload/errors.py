"""What can go wrong with something that the service depends on."""

from __future__ import annotations


class SettingsError(Exception):
    """The environment is incomplete or malformed; names each variable, never a value."""


class TransientError(Exception):
    """It did not answer, or said that it can't just now. Trying again may help; counts towards the breaker."""


class PermanentError(Exception):
    """It answered and refused. Trying the same again won't help."""


class CircuitOpenError(Exception):
    """Not tried at all: the breaker is open after too many failures in a row."""


class DatabaseUnavailableError(Exception):
    """PostgreSQL can't be reached, does not answer in time, or its breaker is open."""
