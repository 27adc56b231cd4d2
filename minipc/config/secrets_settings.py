"""Where secrets are kept: the `secrets_*` keys of `group_data/`, which hold the values.

Only the keys inside `secrets_vault` have defaults here: they are Vault's own.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from minipc.core.reserved_addresses import is_documentation
from minipc.core.strict import Strict

Backend = Literal["age", "vault"]


def _trusted_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not a URL; allowed: https:// and a host, such as 'https://vault.example.org:8200'")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("has credentials, a query or a fragment; allowed: scheme, host and port only")
    if parts.scheme == "http" and not (_is_loopback(parts.hostname) or is_documentation(parts.hostname)):
        raise ValueError(
            "anyone on the network could read and change it; allowed: https://, or http:// to this computer; "
            f"did you mean {'https' + value.removeprefix('http')!r}?"
        )
    return value.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _path(value: str) -> str:
    if not value.strip("/") or any(part in ("", ".", "..") for part in value.strip("/").split("/")):
        raise ValueError("not a path in Vault; allowed: names joined by '/', such as 'minipc'")
    return value.strip("/")


TrustedUrl = Annotated[str, AfterValidator(_trusted_url)]
VaultPath = Annotated[str, AfterValidator(_path)]


class VaultSettings(Strict):
    """How to reach Vault or OpenBao. Credentials are never here: they come from the environment or from 0600 files.

    Attributes:
        url: scheme, host and port.
        mount: where the KV version 2 engine is mounted.
        path_prefix: secrets are at `<mount>/<path_prefix>/<environment>/<first part of the name>`.
        namespace: for servers that have them.
        ca_file: PEM bundle that the server's certificate must chain to; None: the system's.
        auth: "token" (`$VAULT_TOKEN`, else `token_file`) or "approle".
        token_file: file with a token, 0600.
        approle_mount: where the AppRole method is mounted.
        role_id_file: file with the role id.
        secret_id_file: file with the secret id, 0600.
        timeout_s: longest wait for a connection and for each answer, seconds.
    """

    url: TrustedUrl
    mount: VaultPath = "secret"
    path_prefix: VaultPath = "minipc"
    namespace: str | None = None
    ca_file: str | None = None
    auth: Literal["token", "approle"] = "token"
    token_file: str | None = None
    approle_mount: VaultPath = "approle"
    role_id_file: str | None = None
    secret_id_file: str | None = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10

    @model_validator(mode="after")
    def _approle_has_its_files(self) -> VaultSettings:
        if self.auth == "approle" and not (self.role_id_file and self.secret_id_file):
            raise ValueError("auth 'approle' needs role_id_file and secret_id_file")
        return self


class SecretsSettings(Strict):
    """Which backend, and what it needs.

    Attributes:
        backend: "age" (a file in the repository, encrypted) or "vault". The lab always uses its own age file.
        age_recipients: public keys (`age1…`) that may open the age file besides the operator's own.
        vault: needed for the backend "vault", and to copy to or from it.
    """

    backend: Backend
    age_recipients: list[str]
    vault: VaultSettings | None

    @model_validator(mode="after")
    def _vault_is_described(self) -> SecretsSettings:
        if self.backend == "vault" and self.vault is None:
            raise ValueError("secrets_backend 'vault' needs secrets_vault with at least its url")
        return self
