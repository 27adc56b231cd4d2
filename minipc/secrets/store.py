"""The interface of every backend, and the error for missing secrets."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from minipc.core.errors import SecretError
from minipc.secrets.secret import Secret, Secrets, check_name


class SecretStore(Protocol):
    """The secrets of one environment. Errors are MinipcErrors (SecretError) that name keys and paths, never values."""

    @property
    def backend(self) -> str:
        """`age` or `vault`."""

    @property
    def location(self) -> str:
        """Return where the secrets are, for messages: a file, or a URL with a path."""

    def where(self, name: str) -> str:
        """Return where this secret is, for messages; empty if the location is enough."""

    def prepare(self) -> list[str]:
        """Create what is needed before the first secret can be stored; return what was created."""

    def get(self, name: str) -> Secret:
        """Return a secret; the error for a missing one suggests the nearest name."""

    def read(self, names: Collection[str]) -> dict[str, Secret]:
        """Return those of the secrets that exist."""

    def names(self) -> list[str]:
        """Return all names, sorted."""

    def renewed(self) -> dict[str, str]:
        """Return the day (YYYY-MM-DD) when each secret got its value, as far as that is known."""

    def set_many(self, values: Mapping[str, str], *, keep_existing: bool = False) -> None:
        """Store all values; other secrets are unchanged. An error says what was not stored.

        Args:
            values: values by name.
            keep_existing: do not replace existing values, even those stored meanwhile by another process.
        """


def resolve(store: SecretStore, names: Iterable[str], optional: Iterable[str] = ()) -> Secrets:
    """Return all the named secrets.

    Raises:
        SecretError: lists every missing secret that is not optional, with the nearest existing name.
    """
    required = {check_name(name): None for name in names}
    wanted = required | {check_name(name): None for name in optional}
    found = store.read(list(wanted))
    missing = [name for name in required if name not in found]
    if missing:
        raise _missing(store, missing)
    return Secrets(found, frozenset(wanted) - frozenset(found))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for an error message, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _missing(store: SecretStore, missing: list[str]) -> SecretError:
    try:
        known = store.names()
    except SecretError:  # listing may be denied where reading is not
        known = []
    lines = []
    for name in missing:
        where = store.where(name)
        lines.append(f"\n  - {name}{f' ({where})' if where else ''}{nearest(name, known)}")
    count = "a secret is" if len(missing) == 1 else f"{len(missing)} secrets are"
    return SecretError(
        f"{count} missing in {store.backend} {store.location}:{''.join(lines)}",
        "`minipc secrets init` generates the ones that can be generated, `minipc secrets set NAME` stores the others",
    )
