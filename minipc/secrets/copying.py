"""Copy secrets from one backend to the other."""

from __future__ import annotations

from dataclasses import dataclass

from minipc.core.errors import RefusedError, SecretError
from minipc.secrets.store import SecretStore


@dataclass(frozen=True)
class Copied:
    """Names that were written, and names that already had the same value."""

    written: list[str]
    same: list[str]


def copy(source: SecretStore, target: SecretStore, *, overwrite: bool = False) -> Copied:
    """Copy every secret and read it back. Secrets that only the target has are unchanged.

    Raises:
        RefusedError: the target has other values and `overwrite` is False; nothing was written.
        SecretError: the source cannot be read or is empty, or the target cannot be written.
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
            "decide which values are right; --overwrite replaces those of the target",
        )
    written = sorted(name for name in values if name not in present or name in different)
    target.set_many({name: values[name].reveal() for name in written})
    if target.read(values) != values:
        raise SecretError(f"{target.backend} {target.location} did not return the stored values", "run it again")
    return Copied(written, sorted(set(values) - set(written)))
