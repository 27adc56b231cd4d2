"""The `secrets_*` keys: one fixture for each rule, valid and invalid."""

from __future__ import annotations

from typing import Any

import pytest

from minipc import config
from minipc.core.errors import ConfigError

VAULT = {"url": "https://vault.example.org:8200"}
APPROLE = {"auth": "approle", "role_id_file": "~/role-id", "secret_id_file": "~/secret-id"}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"secrets_backend": "vault", "secrets_vault": VAULT},
        {"secrets_vault": VAULT},
        {"secrets_vault": {"url": "http://127.0.0.1:8200"}},
        {"secrets_vault": {"url": "http://[::1]:8200"}},
        {"secrets_vault": {"url": "http://localhost:8200"}},
        {"secrets_vault": VAULT | APPROLE},
        {"secrets_vault": VAULT | {"namespace": "team", "ca_file": "~/ca.pem", "mount": "kv", "timeout_s": 3}},
        {"secrets_age_recipients": ["age1…"]},
    ],
)
def test_valid(values: dict[str, Any]) -> None:
    config.load("lab", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"secrets_backend": "valt"}, "did you mean 'vault'?"),
        ({"secrets_backend": "vault"}, "needs secrets_vault with at least its url"),
        ({"secrets_bakend": "age"}, "did you mean 'secrets_backend'?"),
        ({"secrets_vault": {}}, "secrets_vault[url]: missing"),
        ({"secrets_vault": VAULT | {"tokn": "x"}}, "tokn]: unknown key"),
        ({"secrets_vault": {"url": "vault.example.org"}}, "not a URL"),
        ({"secrets_vault": {"url": "http://vault.example.org"}}, "did you mean 'https://vault.example.org'?"),
        ({"secrets_vault": {"url": "https://vault.example.org/?x=1"}}, "allowed: scheme, host and port only"),
        ({"secrets_vault": {"url": "https://me:word@vault.example.org"}}, "allowed: scheme, host and port only"),
        ({"secrets_vault": VAULT | {"auth": "approle"}}, "needs role_id_file and secret_id_file"),
        ({"secrets_vault": VAULT | {"auth": "aprole"}}, "'approle'"),
        ({"secrets_vault": VAULT | {"path_prefix": "../other"}}, "not a path in Vault"),
        ({"secrets_vault": VAULT | {"mount": "/"}}, "not a path in Vault"),
        ({"secrets_vault": VAULT | {"timeout_s": 3600}}, "secrets_vault[timeout_s] = 3600: too large"),
        ({"secrets_vault": VAULT | {"timeout_s": 0}}, "greater than 0"),
        ({"secrets_age_recipients": "age1…"}, "did you mean ['age1…']?"),
    ],
)
def test_invalid(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load("lab", **values)
    assert message in str(caught.value)
    assert next(iter(values)) in str(caught.value)
    assert "nothing was changed" in str(caught.value)
