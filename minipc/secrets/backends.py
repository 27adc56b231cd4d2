"""Opens the configured backend, and resolves what a run needs before its first change."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from minipc import paths
from minipc.errors import ConfigError, SecretError
from minipc.secrets.logs import show_labels
from minipc.secrets.secret import Secrets
from minipc.secrets.settings import Backend, SecretsSettings
from minipc.secrets.store import SecretStore, resolve

LAB = "lab"


def load(
    environment: str,
    names: Iterable[str],
    *,
    optional: Iterable[str] = (),
    settings: SecretsSettings | None = None,
) -> Secrets:
    """All the named secrets, resolved at once. Call it before the first change.

    Args:
        environment: `lab` or `production`.
        names: what must be there.
        optional: what may be missing; see `Secrets.optional`.
        settings: None reads the `secrets_*` keys of group_data.

    Raises:
        SecretError: the backend can't be read, or names are missing; lists all of them.
        ConfigError: group_data is wrong.
    """
    return resolve(open_store(environment, settings), names, optional)


def open_store(
    environment: str, settings: SecretsSettings | None = None, backend: Backend | None = None
) -> SecretStore:
    """The secrets of an environment. Nothing is read or contacted before the first use.

    Args:
        environment: `lab` or `production`; the lab's secrets are always in its own age file.
        settings: None reads the `secrets_*` keys of group_data.
        backend: instead of the configured one.

    Raises:
        ConfigError: no such environment, or the backend is not configured.
    """
    show_labels()
    check_environment(environment)
    settings = settings or configured(environment)
    chosen = "age" if environment == LAB else backend or settings.backend
    # Imported here: a run needs one of them, and hvac alone costs a tenth of a second.
    if chosen == "age":
        from minipc.secrets.age import AgeStore

        return AgeStore(age_file(environment), age_key_file(environment), settings.age_recipients)
    if settings.vault is None:
        raise ConfigError("the backend vault is not configured", "set secrets_vault in group_data/production.py")
    from minipc.secrets.vault import VaultStore

    return VaultStore(settings.vault, environment)


def configured(environment: str) -> SecretsSettings:
    """The `secrets_*` keys of group_data for an environment. Raises ConfigError."""
    from minipc import config  # the schema embeds our settings, so not at import time

    return config.load(environment).secrets


def lab_secrets_dir() -> Path:
    """Where the lab's generated secrets are: `$MINIPC_LAB_SECRETS_DIR`, else in the state directory.

    A rebuild rotates the keys of the machine it replaces, so two rehearsals at once need two sets.
    """
    override = os.environ.get("MINIPC_LAB_SECRETS_DIR")
    if not override:
        return paths.state_dir(LAB, "secrets")
    path = Path(override).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def age_file(environment: str) -> Path:
    """The encrypted file: `secrets/<environment>.age` in the repository; the lab's is in `lab_secrets_dir()`."""
    if environment == LAB:
        return lab_secrets_dir() / "lab.age"
    return paths.ROOT / "secrets" / f"{environment}.age"


def age_key_file(environment: str) -> Path:
    """The identity that opens it, outside the repository: `$MINIPC_AGE_KEY_FILE`, else `age.key` in config_dir().

    The lab has one of its own, so that a rehearsal never touches production's.
    """
    if environment == LAB:
        return lab_secrets_dir() / "age.key"
    override = os.environ.get("MINIPC_AGE_KEY_FILE")
    return Path(override).expanduser() if override else paths.config_dir() / "age.key"


def check_environment(environment: str) -> None:
    """Raises SecretError unless it can be a file name and a path in Vault."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", environment):
        raise SecretError(f"not the name of an environment: {environment!r}", "allowed: lab, production")
