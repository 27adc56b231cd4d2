"""Check the newest bundle: its age, and what changed since. Results contain names only, never values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from minipc import config
from minipc.bundle.archive import BundleError, Fingerprints
from minipc.bundle.contents import fingerprints, gather, now
from minipc.bundle.opening import read_bundle
from minipc.bundle.state import State, read_state
from minipc.core.environment import EnvironmentName
from minipc.core.errors import CouldNotVerifyError, MinipcError


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    Attributes:
        created: when the bundle was created.
        age: time since then.
        too_old: whether it is older than `bundle_max_age_days`.
        changed: differences from the present state: "changed: secret NAME", "new: …", "gone: …".
        problems: what is wrong with the file itself.
        notes: what could not be checked, and why that is not a failure.
    """

    environment: EnvironmentName
    created: datetime
    age: timedelta
    too_old: bool
    changed: list[str]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Return whether a rebuild from this bundle would restore the present state."""
        return not (self.changed or self.problems)

    @property
    def passed(self) -> bool:
        """Return whether it fits and is not too old."""
        return self.fits and not self.too_old


def check(
    environment: EnvironmentName,
    file: Path | None = None,
    passphrase: str | None = None,
    moment: datetime | None = None,
) -> Checked:
    """Compare the newest bundle with the content that a new one would have.

    Args:
        file: the bundle; None: the newest that was created on this computer, if it still exists where it was written.
        passphrase: opens the file and checks all of it; None: compares its hash with the one noted at its creation.

    Raises:
        CouldNotVerifyError: no bundle is known, or the present state cannot be read.
        BundleError, SecretError: the file cannot be opened.
    """
    moment = moment or now()
    state = read_state(environment)
    problems: list[str] = []
    notes: list[str] = []
    if passphrase is not None and (file or state):
        path = file or Path(state.file if state else "")
        manifest = read_bundle(path, passphrase).manifest
        if manifest.environment != environment:
            raise BundleError(
                f"{path} is a bundle of {manifest.environment}, not of {environment}",
                f"check it with --inventory {manifest.environment}",
            )
        created, then = manifest.created, manifest.fingerprints
    elif state is not None:
        created, then = state.created, state.fingerprints
        problems, notes = _file_state(state, file)
    else:
        raise CouldNotVerifyError(
            f"no bundle of {environment} was created on this computer",
            "run `minipc bundle create FILE`; for a bundle from another computer, `minipc bundle check FILE --open`",
        )
    changed = differences(then, _measured(environment, moment))
    too_old = moment - created > timedelta(days=config.load(environment).bundle.max_age_days)
    return Checked(environment, created, moment - created, too_old, changed, problems, notes)


def differences(then: Fingerprints, measured: Mapping[str, bytes]) -> list[str]:
    """Return what differs, as names."""
    today = fingerprints(measured, then.key).items
    found = {name: "changed" for name in then.items.keys() & today.keys() if then.items[name] != today[name]}
    found |= dict.fromkeys(today.keys() - then.items.keys(), "new")
    found |= dict.fromkeys(then.items.keys() - today.keys(), "gone")
    return [f"{found[name]}: {name}" for name in sorted(found)]


def _file_state(state: State, file: Path | None) -> tuple[list[str], list[str]]:
    path = file or Path(state.file)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        if file is not None:
            return [f"{path} cannot be read: {error.strerror}"], []
        return [], [f"{path} is not available ({error.strerror}): only the notes from its creation were compared"]
    if digest != state.sha256:
        return [f"{path} is not the newest bundle, or is damaged: its sha256 differs from the noted one"], []
    return [], []


def _measured(environment: EnvironmentName, moment: datetime) -> Mapping[str, bytes]:
    try:
        return gather(environment, moment).measured
    except CouldNotVerifyError:
        raise
    except MinipcError as error:
        raise CouldNotVerifyError(f"the present state cannot be read: {error.what}", error.next_step) from None
