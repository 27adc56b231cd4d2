"""Copies secrets from one backend to the other: what Vault holds gets into the break-glass bundle this way."""

from __future__ import annotations

from dataclasses import dataclass

from minipc.errors import RefusedError, SecretError
from minipc.secrets.store import SecretStore


@dataclass(frozen=True)
class Copied:
    """Names that were written, and those that were there with the same value."""

    written: list[str]
    same: list[str]


def copy(source: SecretStore, target: SecretStore, *, overwrite: bool = False) -> Copied:
    """Copies every secret and reads it back. Names that only the target has stay as they are.

    Raises:
        RefusedError: the target has other values and `overwrite` was not given; nothing was written.
        SecretError: the source can't be read or has none, or the target was not written as asked.
    """
    values = source.read(source.names())
    if not values:
        raise SecretError(f"there are no secrets in {source.backend} {source.location}", "nothing was copied")
    target.prepare()
    present = target.read(values)
    different = [name for name in present if present[name] != values[name]]
    if different and not overwrite:
        names = ", ".join(sorted(different))
        raise RefusedError(
            f"{target.backend} {target.location} has other values for {names}; nothing was copied",
            "decide which side is right; --overwrite replaces them",
        )
    written = sorted(name for name in values if name not in present or name in different)
    target.set_many({name: values[name].reveal() for name in written})
    if target.read(values) != values:
        raise SecretError(f"{target.backend} {target.location} did not give back what was stored", "run it again")
    return Copied(written, sorted(set(values) - set(written)))
