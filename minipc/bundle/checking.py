"""Whether the newest bundle still fits: its age, and what has changed since. Names only, never a value."""

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
from minipc.errors import CouldNotVerifyError, MinipcError
from minipc.inventory import Environment


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        created: when the bundle was made.
        age: since then.
        too_old: older than `bundle_max_age_days`.
        changed: what is no longer as in the bundle: "changed: secret NAME", "new: …", "gone: …".
        problems: what is wrong with the file itself.
        notes: what could not be looked at, and why that is no failure.
    """

    environment: Environment
    created: datetime
    age: timedelta
    too_old: bool
    changed: list[str]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether a rebuild from this bundle would be a rebuild of what is there now."""
        return not (self.changed or self.problems)

    @property
    def passed(self) -> bool:
        """Fits, and is young enough."""
        return self.fits and not self.too_old


def check(
    environment: Environment, file: Path | None = None, passphrase: str | None = None, moment: datetime | None = None
) -> Checked:
    """Compares the newest bundle with what a new one would hold.

    Args:
        file: the bundle; None: the newest that was made on this computer, where it was written, if it is still there.
        passphrase: opens the file and checks all of it; None: its hash is compared with the one noted when it was made.

    Raises:
        CouldNotVerifyError: no bundle is known, or what it is to be compared with can't be read.
        BundleError, SecretError: the file can't be opened.
    """
    moment = moment or now()
    if passphrase is not None:
        return _check_inside(environment, _known_file(environment, file), passphrase, moment)
    state = read_state(environment)
    if state is None:
        raise CouldNotVerifyError(
            f"no bundle of {environment} was made on this computer",
            "`minipc bundle create FILE` makes one; `minipc bundle check FILE --open` checks one made elsewhere",
        )
    problems, notes = _file_state(state, file)
    changed = differences(state.fingerprints, _measured(environment, moment))
    return _checked(environment, state.created, moment, changed, problems, notes)


def differences(then: Fingerprints, measured: Mapping[str, bytes]) -> list[str]:
    """What is not as it was; names only."""
    today = fingerprints(measured, then.key).items
    found = {name: "changed" for name in then.items.keys() & today.keys() if then.items[name] != today[name]}
    found |= dict.fromkeys(today.keys() - then.items.keys(), "new")
    found |= dict.fromkeys(then.items.keys() - today.keys(), "gone")
    return [f"{found[name]}: {name}" for name in sorted(found)]


def _check_inside(environment: Environment, file: Path, passphrase: str, moment: datetime) -> Checked:
    manifest = read_bundle(file, passphrase).manifest
    if manifest.environment != environment:
        raise BundleError(
            f"{file} is a bundle of {manifest.environment}, not of {environment}",
            f"check it with --inventory {manifest.environment}",
        )
    changed = differences(manifest.fingerprints, _measured(environment, moment))
    return _checked(environment, manifest.created, moment, changed, [], [])


def _checked(
    environment: Environment,
    created: datetime,
    moment: datetime,
    changed: list[str],
    problems: list[str],
    notes: list[str],
) -> Checked:
    age = moment - created
    too_old = age > timedelta(days=config.load(environment).bundle.max_age_days)
    return Checked(environment, created, age, too_old, changed, problems, notes)


def _known_file(environment: Environment, file: Path | None) -> Path:
    if file is not None:
        return file
    state = read_state(environment)
    if state is None:
        raise CouldNotVerifyError(f"no bundle of {environment} was made on this computer", "name its file")
    return Path(state.file)


def _file_state(state: State, file: Path | None) -> tuple[list[str], list[str]]:
    path = file or Path(state.file)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        if file is not None:
            return [f"{path} can't be read: {error.strerror}"], []
        return [], [f"{path} is not at hand ({error.strerror}): only what was noted when it was made was compared"]
    if digest != state.sha256:
        return [f"{path} is not the newest bundle, or is damaged: another sha256 was noted when that was made"], []
    return [], []


def _measured(environment: Environment, moment: datetime) -> Mapping[str, bytes]:
    try:
        return gather(environment, moment).measured
    except CouldNotVerifyError:
        raise
    except MinipcError as error:
        raise CouldNotVerifyError(
            f"what the bundle is to be compared with can't be read: {error.what}", error.next_step
        ) from None
