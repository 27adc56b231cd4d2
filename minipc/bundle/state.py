"""What this computer remembers of the newest bundle, so that its age and whether it still fits need no passphrase."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from minipc import paths
from minipc.bundle.archive import BundleError, Fingerprints, Sha256
from minipc.secrets.files import read_private, write_private


class State(BaseModel):
    """The newest bundle made here.

    Attributes:
        file: where it was written.
        sha256: of the sealed file.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    environment: Literal["production", "lab"]
    created: AwareDatetime
    file: str
    sha256: Sha256
    fingerprints: Fingerprints


def state_file(environment: str) -> Path:
    """`bundle/<environment>.json` in the state directory, 0600."""
    return paths.state_dir("bundle") / f"{environment}.json"


def write_state(state: State) -> None:
    """Replaces what is remembered. Raises SecretError when it can't be written."""
    write_private(state_file(state.environment), state.model_dump_json(indent=2).encode() + b"\n")


def read_state(environment: str) -> State | None:
    """What is remembered, or None when no bundle was made here.

    Raises:
        SecretError: it can't be read, or others can read it.
        BundleError: it is damaged.
    """
    path = state_file(environment)
    if not path.exists():
        return None
    try:
        return State.model_validate_json(read_private(path, "the state of the bundle"))
    except ValidationError:
        raise BundleError(f"{path} is damaged", "make a new bundle: `minipc bundle create FILE`") from None
