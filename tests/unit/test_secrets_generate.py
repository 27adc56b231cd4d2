"""The catalogue, values that are generated, and copying between backends."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc.config.secrets_settings import VaultSettings
from minipc.core.errors import RefusedError, SecretError
from minipc.secrets import catalogue, ed25519, generate
from minipc.secrets.age import AgeStore
from minipc.secrets.catalogue import Entry
from minipc.secrets.copying import copy
from minipc.secrets.secret import Secret, check_name
from minipc.secrets.vault import VaultStore
from tests.unit.secrets_leaks import assert_silent
from tests.unit.secrets_vault_server import FakeVault

PASSWORD = Entry("postgres.password.parking", "postgres", "a password", "alphanumeric")
KEY = Entry("wireguard.private_key", "vpn", "a key", "wireguard")
DSN = Entry("sentry.dsn", "parking", "supplied", None, optional=True)


@pytest.fixture
def age(tmp_path: Path) -> AgeStore:
    store = AgeStore(tmp_path / "production.age", tmp_path / "age.key")
    store.prepare()
    return store


@pytest.fixture
def server() -> Iterator[FakeVault]:
    with FakeVault() as server:
        yield server


@pytest.fixture
def vault(server: FakeVault, monkeypatch: pytest.MonkeyPatch) -> VaultStore:
    monkeypatch.setenv("VAULT_TOKEN", "root-token")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return VaultStore(VaultSettings(url=server.url), "production")


def test_an_ssh_key_is_one_and_a_new_one_each_time() -> None:
    first, second = (Secret("backups.sftp_key", generate.new_value("ssh-key")) for _ in range(2))
    assert ed25519.public_key(first).startswith("ssh-ed25519 AAAA")
    assert ed25519.public_key(first) != ed25519.public_key(second)


def test_renewing_replaces_the_named_ones_only(monkeypatch: pytest.MonkeyPatch, age: AgeStore) -> None:
    monkeypatch.setattr(generate, "open_store", lambda environment, settings=None: age)
    generate.fill(age, catalogue.for_environment("lab"))
    before = {name: age.get(name) for name in age.names()}
    generate.renew("lab", catalogue.GENERATION)
    changed = {name for name, secret in before.items() if age.get(name) != secret}
    assert changed == set(catalogue.GENERATION)
    with pytest.raises(SecretError, match=r"cannot be generated: sentry\.dsn"):
        generate.renew("lab", ["sentry.dsn"])


# --- catalogue ----------------------------------------------------------------------------------------------------


def test_names_come_from_roles_and_users() -> None:
    assert [entry.name for entry in catalogue.needed("postgres", ["parking", "monitoring"])] == [
        "postgres.password.parking",
        "postgres.password.monitoring",
    ]
    assert [entry.name for entry in catalogue.needed("redis", ["cache"])] == [catalogue.redis_password("cache")]
    assert catalogue.needed("postgres") == []
    assert catalogue.needed("firewall") == []


def test_the_whole_catalogue_of_an_environment() -> None:
    entries = catalogue.for_environment("lab")
    names = [check_name(entry.name) for entry in entries]
    assert len(set(names)) == len(names)
    assert {"postgres.password.parking", "redis.password.parking"} <= set(names)


# --- generated values ---------------------------------------------------------------------------------------------


def test_passwords() -> None:
    values = {generate.new_value("alphanumeric") for _ in range(100)}
    assert len(values) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", value) for value in values)


def test_wireguard_keys_are_clamped() -> None:
    values = {generate.new_value("wireguard") for _ in range(50)}
    assert len(values) == 50
    for value in values:
        key = base64.b64decode(value, validate=True)
        assert len(key) == 32
        assert key[0] & 0b111 == 0
        assert key[31] & 0b11000000 == 0b01000000


def test_fill_generates_what_is_missing_and_keeps_the_rest(age: AgeStore) -> None:
    age.set_many({PASSWORD.name: "mine"})
    filled = generate.fill(age, [PASSWORD, KEY, DSN, KEY])
    assert (filled.generated, filled.present, filled.to_supply) == ([KEY.name], [PASSWORD.name], [DSN])
    assert age.get(PASSWORD.name).reveal() == "mine"
    key = age.get(KEY.name)
    again = generate.fill(age, [PASSWORD, KEY, DSN])
    assert again.generated == []
    assert age.get(KEY.name) == key


def test_fill_in_vault(vault: VaultStore) -> None:
    assert generate.fill(vault, [PASSWORD, DSN]).generated == [PASSWORD.name]
    assert len(vault.get(PASSWORD.name).reveal()) == generate.PASSWORD_LENGTH


def test_the_lab_is_generated_outside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MINIPC_AGE_KEY_FILE", str(tmp_path / "operators.key"))
    first = generate.generate("lab")
    assert "postgres.password.parking" in first.generated
    assert {entry.name for entry in first.to_supply} >= {"watcher.alive_url", "dns.cloudflare_token"}
    assert all(entry.generate is None for entry in first.to_supply)
    assert generate.generate("lab").generated == []
    assert sorted(path.name for path in (tmp_path / "state/lab/secrets").iterdir()) == [
        "age.key",
        "lab.age",
        "lab.age.bak",
    ]
    assert not (tmp_path / "operators.key").exists()


# --- copying ------------------------------------------------------------------------------------------------------


def test_copy_there_and_back(age: AgeStore, vault: VaultStore, tmp_path: Path) -> None:
    generate.fill(age, [PASSWORD, KEY])
    age.set_many({"sentry.dsn": "https://key@sentry.example.org/1"})
    copied = copy(age, vault)
    assert (copied.written, copied.same) == ([PASSWORD.name, "sentry.dsn", KEY.name], [])
    other = AgeStore(tmp_path / "other" / "production.age", tmp_path / "other.key")
    copy(vault, other)
    assert other.read(other.names()) == age.read(age.names())
    assert copy(vault, other).written == []


def test_copy_keeps_what_only_the_target_has(age: AgeStore, vault: VaultStore) -> None:
    age.set_many({PASSWORD.name: "x"})
    vault.set_many({"postgres.password.monitoring": "theirs"})
    copy(age, vault)
    assert vault.get("postgres.password.monitoring").reveal() == "theirs"


def test_copy_refuses_to_replace_another_value(age: AgeStore, vault: VaultStore, server: FakeVault) -> None:
    age.set_many({PASSWORD.name: "swordfish-one", "redis.password.parking": "same"})
    vault.set_many({PASSWORD.name: "swordfish-two"})
    with pytest.raises(RefusedError, match=r"has other values for postgres\.password\.parking") as caught:
        copy(age, vault)
    assert_silent(caught.value, "swordfish-")
    assert list(server.versions) == ["minipc/production/postgres"]
    copy(age, vault, overwrite=True)
    assert vault.get(PASSWORD.name).reveal() == "swordfish-one"


def test_copy_of_nothing(age: AgeStore, vault: VaultStore) -> None:
    with pytest.raises(SecretError, match="there are no secrets in vault"):
        copy(vault, age)


def test_copy_from_a_sealed_vault_writes_nothing(age: AgeStore, vault: VaultStore, server: FakeVault) -> None:
    server.sealed = True
    before = age.path.read_bytes()
    with pytest.raises(SecretError, match="is sealed"):
        copy(vault, age)
    assert age.path.read_bytes() == before
