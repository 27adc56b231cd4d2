"""Open the configured backend, and resolve the secrets of a run before its first change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minipc import config
from minipc.config.secrets_settings import Backend, SecretsSettings
from minipc.core.environment import named
from minipc.core.errors import ConfigError
from minipc.secrets.logs import show_labels
from minipc.secrets.secret import Secrets
from minipc.secrets.store import SecretStore, resolve


def load(
    environment: str,
    names: Iterable[str],
    *,
    optional: Iterable[str] = (),
    settings: SecretsSettings | None = None,
) -> Secrets:
    """Return all the named secrets. Call it before the first change.

    Args:
        environment: `lab` or `production`.
        names: secrets that must exist.
        optional: secrets that may be missing; see `Secrets.optional`.
        settings: None reads the `secrets_*` keys of group_data.

    Raises:
        SecretError: the backend cannot be read, or secrets are missing; lists all of them.
        ConfigError: group_data is wrong.
    """
    return resolve(open_store(environment, settings), names, optional)


def open_store(
    environment: str, settings: SecretsSettings | None = None, backend: Backend | None = None
) -> SecretStore:
    """Return the secrets of an environment. Nothing is read or contacted before the first use.

    Args:
        environment: `lab` or `production`; the lab always uses its own age file.
        settings: None reads the `secrets_*` keys of group_data.
        backend: overrides the configured one.

    Raises:
        ConfigError: there is no such environment, or the backend is not configured.
    """
    show_labels()
    where = named(environment)
    settings = settings or config.load(environment).secrets
    chosen = backend or settings.backend if where.in_repository else "age"
    # Imported here: a run needs one backend, and hvac alone costs a tenth of a second.
    if chosen == "age":
        from minipc.secrets.age import AgeStore  # noqa: PLC0415

        return AgeStore(where.age_file, where.age_key_file, settings.age_recipients)
    if settings.vault is None:
        raise ConfigError("the backend vault is not configured", "set secrets_vault in group_data/production.py")
    from minipc.secrets.vault import VaultStore  # noqa: PLC0415

    return VaultStore(settings.vault, environment)


def age_file(environment: str) -> Path:
    """Return the encrypted file of an environment."""
    return named(environment).age_file


def age_key_file(environment: str) -> Path:
    """Return the key that opens the encrypted file of an environment; it is outside the repository."""
    return named(environment).age_key_file
