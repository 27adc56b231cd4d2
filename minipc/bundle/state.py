"""Notes on this computer about the newest bundle, so that `bundle check` needs no passphrase."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from minipc.bundle.archive import BundleError, Fingerprints, Sha256
from minipc.core import paths
from minipc.core.files import read_private, write_private
from minipc.core.strict import Strict


class State(Strict):
    """The newest bundle created on this computer.

    Attributes:
        file: where it was written.
        sha256: of the sealed file.
    """

    environment: Literal["production", "lab"]
    created: AwareDatetime
    file: str
    sha256: Sha256
    fingerprints: Fingerprints


def state_file(environment: str) -> Path:
    """Return the path: `bundle/<environment>.json` in the state directory, 0600."""
    return paths.state_dir("bundle") / f"{environment}.json"


def write_state(state: State) -> None:
    """Replace the notes. Raises SecretError if they cannot be written."""
    write_private(state_file(state.environment), state.model_dump_json(indent=2).encode() + b"\n")


def read_state(environment: str) -> State | None:
    """Return the notes, or None if no bundle was created here.

    Raises:
        SecretError: they cannot be read, or others can read them.
        BundleError: they are damaged.
    """
    path = state_file(environment)
    if not path.exists():
        return None
    try:
        return State.model_validate_json(read_private(path, "the notes about the bundle"))
    except ValidationError:
        raise BundleError(f"{path} is damaged", "create a new bundle: `minipc bundle create FILE`") from None
