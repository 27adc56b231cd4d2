"""A secret value that cannot be written by accident.

Converting a `Secret` to text raises. A template, f-string or command line without `.reveal()` therefore stops the run
instead of writing a mask into a file. `repr` is safe, and `minipc.secrets.logs` makes log calls use it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import NoReturn

from minipc.core.errors import SecretError

# The hash in a label distinguishes two values within one run. Its key is random per process: it does not help to guess.
_LABEL_KEY = secrets.token_bytes(32)
_NAME = re.compile(r"[a-z][a-z0-9_-]*((\.[a-z0-9_][a-z0-9_-]*)+|\.[A-Za-z_][A-Za-z0-9_]*)")


def is_name(text: str) -> bool:
    """Return whether the text has the form of a secret's name."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """Return the name if it is valid: `postgres.password.shop`, or `shop.STRIPE_KEY` for a variable of a service.

    Raises:
        SecretError: it is not valid. The text after the first invalid character is not shown: it might be a value.
    """
    if not is_name(name):
        valid = re.match(r"[a-z0-9_.-]*", name)
        shown = valid.group() if valid else ""
        raise SecretError(
            f"{shown!r}{'…' if shown != name else ''} is not the name of a secret",
            "allowed: lower-case parts joined by dots, such as postgres.password.shop; for a service NAME.VARIABLE",
        )
    return name


class Secret:
    """One named value.

    Args:
        name: see `check_name`.
        value: text; not empty.

    Raises:
        SecretError: the name is not valid, or the value is empty or not text.
    """

    __slots__ = ("_value", "name")

    def __init__(self, name: str, value: str) -> None:
        self.name = check_name(name)
        if not isinstance(value, str):
            raise SecretError(f"the value of {name} is not text", f"store it again with `minipc secrets set {name}`")
        if not value:
            raise SecretError(f"the value of {name} is empty", f"store a value with `minipc secrets set {name}`")
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise SecretError(f"the value of {name} is not UTF-8 text", "store binary values as base64")
        self._value = value

    def reveal(self) -> str:
        """Return the value. Call this only where the value is written to its 0600 file."""
        return self._value

    def __repr__(self) -> str:
        digest = hmac.digest(_LABEL_KEY, self._value.encode(), hashlib.sha256).hex()
        return f"Secret({self.name}, sha256:{digest[:6]})"

    def __str__(self) -> str:
        self._refuse("written as text")

    def __format__(self, spec: str) -> str:
        self._refuse("formatted into a text")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self._refuse("pickled")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self.name == other.name and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self.name)

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(
            f"the secret {self.name} was {what}; call .reveal() where the value belongs, use repr in messages"
        )


class Secrets:
    """The secrets that `load` resolved.

    Args:
        found: the values by name.
        absent: optional secrets that were requested and are not set.
    """

    def __init__(self, found: Mapping[str, Secret], absent: frozenset[str] = frozenset()) -> None:
        self._found = dict(found)
        self._absent = absent

    def __getitem__(self, name: str) -> Secret:
        """Return a secret. Raises SecretError if it was not requested, or is optional and not set."""
        if name in self._found:
            return self._found[name]
        if name in self._absent:
            raise SecretError(f"the optional secret {name} is not set", f"set it with `minipc secrets set {name}`")
        raise SecretError(
            f"the secret {name} was not requested; requested: {', '.join(sorted(self)) or 'none'}",
            "add it to the names given to load()",
        )

    def optional(self, name: str) -> Secret | None:
        """Return a secret, or None if it is optional and not set. Raises SecretError if it was not requested."""
        return None if name in self._absent else self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(repr(secret) for secret in self._found.values())})"
