"""What every backend offers, and how missing secrets are told."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from minipc.errors import SecretError
from minipc.secrets.secret import Secret, Secrets, check_name


class SecretStore(Protocol):
    """The secrets of one environment. Every method raises SecretError, naming keys and paths, never values."""

    @property
    def backend(self) -> str:
        """`age` or `vault`."""

    @property
    def location(self) -> str:
        """Where it is, for messages: a file or a URL with path."""

    def where(self, name: str) -> str:
        """Where this one secret is, for messages; empty when the location says it all."""

    def prepare(self) -> list[str]:
        """Makes what must be there before the first secret is stored; what it made, for messages."""

    def get(self, name: str) -> Secret:
        """The secret; a missing one is an error with the nearest name."""

    def read(self, names: Collection[str]) -> dict[str, Secret]:
        """Those of the names that are there."""

    def names(self) -> list[str]:
        """All names, sorted."""

    def set_many(self, values: Mapping[str, str], *, keep_existing: bool = False) -> None:
        """Stores all values or says what was not stored; other names keep theirs.

        Args:
            values: by name.
            keep_existing: a name that has a value already keeps it, whoever stored it in the meantime.
        """


def resolve(store: SecretStore, names: Iterable[str], optional: Iterable[str] = ()) -> Secrets:
    """All secrets at once.

    Raises:
        SecretError: lists every missing name (optional ones aside) with the nearest name there is.
    """
    required = {check_name(name): None for name in names}
    wanted = required | {check_name(name): None for name in optional}
    found = store.read(list(wanted))
    missing = [name for name in required if name not in found]
    if missing:
        raise _missing(store, missing)
    return Secrets(found, frozenset(wanted) - frozenset(found))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for an error message, or nothing."""
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
        "`minipc secrets init` makes those that can be generated, `minipc secrets set NAME` stores the others",
    )
