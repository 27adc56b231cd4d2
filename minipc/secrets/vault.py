"""The Vault/OpenBao backend: KV version 2.

`postgres.password.workload` of production is the field `password.workload` at `<mount>/<prefix>/production/postgres`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from minipc.errors import SecretError
from minipc.secrets.secret import Secret, check_name, is_name
from minipc.secrets.settings import VaultSettings
from minipc.secrets.store import resolve
from minipc.secrets.vault_client import VaultClient


class VaultStore:
    """Secrets of one environment in a KV version 2 engine. The first use logs in.

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
        """URL, mount and path."""
        return f"{self._settings.url} {self._settings.mount}/{self._directory}"

    def where(self, name: str) -> str:
        """Path and field."""
        group, field = _split(name)
        return f"{self._path(group)}, field {field}"

    def prepare(self) -> list[str]:
        """Nothing to make: paths come to be when they are written."""
        return []

    def get(self, name: str) -> Secret:
        """The secret. Raises SecretError."""
        return resolve(self, [name])[name]

    def read(self, names: Collection[str]) -> dict[str, Secret]:
        """Those of the names that are there; one request for each path. Raises SecretError."""
        places = {name: _split(name) for name in names}
        groups = {group: self._read_group(group)[0] for group in sorted({group for group, _ in places.values()})}
        return {
            name: self._secret(name, groups[group][field])
            for name, (group, field) in places.items()
            if field in groups[group]
        }

    def names(self) -> list[str]:
        """All names, sorted; what other programs keep there under names of another form is left out.

        Raises:
            SecretError: listing is denied, or the server can't be asked.
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
        """Writes each path once, with check-and-set: a change made meanwhile by someone else is never overwritten.

        Raises:
            SecretError: names the path that was not written, and those that were.
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

    def _read_group(self, group: str) -> tuple[dict[str, Any], int]:
        """Fields, and the version that the next write replaces: 0 when there is none."""
        path = self._path(group)
        answer = self._client.ask(
            "read",
            path,
            lambda kv: kv.read_secret_version(
                f"{self._directory}/{group}", mount_point=self._settings.mount, raise_on_deleted_version=False
            ),
        )
        if answer is None:
            return {}, 0
        fields, metadata = answer["data"].get("data"), answer["data"].get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("version"), int):
            raise self._not_version_2(path)
        return fields or {}, metadata["version"]  # a deleted version has no fields

    def _write_group(self, group: str, fields: dict[str, str], keep_existing: bool) -> None:
        path = self._path(group)
        present, version = self._read_group(group)
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
            f"{self._settings.url}: what holds {path} is not a KV version 2 engine",
            "correct `mount` in secrets_vault, or upgrade the engine to version 2",
        )


def _split(name: str) -> tuple[str, str]:
    group, _, field = check_name(name).partition(".")
    return group, field
