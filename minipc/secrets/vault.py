"""Keep secrets in Vault or OpenBao, KV version 2.

`postgres.password.shop` of production is the field `password.shop` at `<mount>/<prefix>/production/postgres`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from minipc.config.secrets_settings import VaultSettings
from minipc.core.errors import SecretError
from minipc.secrets.secret import Secret, check_name, is_name
from minipc.secrets.store import resolve
from minipc.secrets.vault_client import VaultClient


class VaultStore:
    """Secrets of one environment in a KV version 2 engine. The first request logs in.

    Args:
        settings: where and how.
        environment: part of the path.
    """

    backend = "vault"

    def __init__(self, settings: VaultSettings, environment: str) -> None:
        self._settings = settings
        self._directory = f"{settings.path_prefix}/{environment}"
        self._client = VaultClient(settings)

    @property
    def location(self) -> str:
        """Return URL, mount and path of the secrets."""
        return f"{self._settings.url} {self._settings.mount}/{self._directory}"

    def where(self, name: str) -> str:
        """Return path and field of a secret."""
        group, field = _split(name)
        return f"{self._path(group)}, field {field}"

    def prepare(self) -> list[str]:
        """Create nothing: writing a secret creates its path."""
        return []

    def get(self, name: str) -> Secret:
        """Return a secret. Raises SecretError."""
        return resolve(self, [name])[name]

    def read(self, names: Collection[str]) -> dict[str, Secret]:
        """Return those of the secrets that exist, with one request per path. Raises SecretError."""
        places = {name: _split(name) for name in names}
        groups = {group: self._read_group(group)[0] for group in sorted({group for group, _ in places.values()})}
        return {
            name: self._secret(name, groups[group][field])
            for name, (group, field) in places.items()
            if field in groups[group]
        }

    def names(self) -> list[str]:
        """Return all names, sorted; entries of other programs, whose names have another form, are left out.

        Raises:
            SecretError: listing is denied, or the server cannot be reached.
        """
        answer = self._client.ask(
            "list",
            f"{self._settings.mount}/{self._directory}",
            lambda kv: kv.list_secrets(self._directory, mount_point=self._settings.mount),
        )
        keys = answer["data"].get("keys", []) if answer else []
        groups = [key for key in keys if not key.endswith("/")]
        names = [f"{group}.{field}" for group in groups for field in self._read_group(group)[0]]
        return sorted(name for name in names if is_name(name))

    def set_many(self, values: Mapping[str, str], *, keep_existing: bool = False) -> None:
        """Write each path once, with check-and-set: a change made meanwhile by another client is not overwritten.

        Raises:
            SecretError: names the path that was not written, and the paths that were.
        """
        groups: dict[str, dict[str, str]] = {}
        for name, value in values.items():
            group, field = _split(name)
            groups.setdefault(group, {})[field] = Secret(name, value).reveal()
        written: list[str] = []
        for group in sorted(groups):
            try:
                self._write_group(group, groups[group], keep_existing)
            except SecretError as error:
                if written:
                    error.next_step += f" (already written: {', '.join(written)})"
                raise
            written.append(self._path(group))

    def renewed(self) -> dict[str, str]:
        """Return the day of the last write to the path of each secret. Raises SecretError as `names` does."""
        names = self.names()
        days = {group: self._read_group(group)[2] for group in {_split(name)[0] for name in names}}
        return {name: days[_split(name)[0]] for name in names}

    def _read_group(self, group: str) -> tuple[dict[str, Any], int, str]:
        """Return the fields, the version that the next write replaces (0 if there is none), and the day of the last."""
        path = self._path(group)
        answer = self._client.ask(
            "read",
            path,
            lambda kv: kv.read_secret_version(
                f"{self._directory}/{group}", mount_point=self._settings.mount, raise_on_deleted_version=False
            ),
        )
        if answer is None:
            return {}, 0, ""
        fields, metadata = answer["data"].get("data"), answer["data"].get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("version"), int):
            raise self._not_version_2(path)
        day = str(metadata.get("created_time", ""))[:10]
        return fields or {}, metadata["version"], day  # a deleted version has no fields

    def _write_group(self, group: str, fields: dict[str, str], keep_existing: bool) -> None:
        path = self._path(group)
        present, version, _ = self._read_group(group)
        merged = {**fields, **present} if keep_existing else {**present, **fields}
        if merged == present:
            return
        answer = self._client.ask(
            "write",
            path,
            lambda kv: kv.create_or_update_secret(
                f"{self._directory}/{group}", merged, cas=version, mount_point=self._settings.mount
            ),
        )
        if answer is None or not isinstance(answer["data"].get("version"), int):
            raise self._not_version_2(path)

    def _secret(self, name: str, value: Any) -> Secret:
        if not isinstance(value, str):
            raise SecretError(f"{self.where(name)}: the value is not text", "store it as a string")
        return Secret(name, value)

    def _path(self, group: str) -> str:
        return f"{self._settings.mount}/{self._directory}/{group}"

    def _not_version_2(self, path: str) -> SecretError:
        return SecretError(
            f"{self._settings.url}: the engine at {path} is not KV version 2",
            "correct `mount` in secrets_vault, or upgrade the engine to version 2",
        )


def _split(name: str) -> tuple[str, str]:
    group, _, field = check_name(name).partition(".")
    return group, field
