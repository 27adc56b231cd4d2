"""The Vault backend against a real OpenBao server (development mode, in memory, TLS on loopback).

Needs the `bao` program on PATH or named by $MINIPC_BAO; nothing here gets it.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from minipc.config.secrets_settings import VaultSettings
from minipc.core.errors import SecretError
from minipc.secrets.age import AgeStore
from minipc.secrets.copying import copy
from minipc.secrets.store import resolve
from minipc.secrets.vault import VaultStore
from tests.unit.secrets_leaks import assert_silent

BAO = os.environ.get("MINIPC_BAO") or shutil.which("bao")
pytestmark = pytest.mark.skipif(not BAO, reason="NOT EXERCISED: no openbao binary")

ROOT_TOKEN = "root-of-a-throwaway-server"
VALUE = "hunter2-correct-horse"
NAME = "postgres.password.shop"
START_S = 30


class Server:
    """A server of our own, its CA and its root token."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{port}"
        certificates = directory / "certificates"
        certificates.mkdir()
        self.ca_file = directory / "ca.pem"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "BAO_DEV_ROOT_TOKEN_ID": ROOT_TOKEN,
            "BAO_DEV_LISTEN_ADDRESS": f"127.0.0.1:{port}",
        }
        arguments = [str(BAO), "server", "-dev", "-dev-no-store-token", "-dev-tls", f"-dev-tls-cert-dir={certificates}"]
        self._log = (directory / "server.log").open("wb")
        self.process = subprocess.Popen(arguments, env=environment, stdout=self._log, stderr=subprocess.STDOUT)
        self._wait(directory / "server.log")
        shutil.copy(certificates / "vault-ca.pem", self.ca_file)  # the server removes its own when it stops
        self.client = httpx.Client(
            base_url=f"{self.url}/v1/",
            headers={"X-Vault-Token": ROOT_TOKEN},
            verify=ssl.create_default_context(cafile=str(self.ca_file)),
            trust_env=False,
        )

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_S
        # The development server mounts `secret/` last and then prints its banner.
        while b"Development mode should NOT be used" not in log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._log.close()

    def ask(self, method: str, path: str, namespace: str = "", **body: Any) -> dict[str, Any]:
        """An administrator's request."""
        headers = {"X-Vault-Namespace": namespace} if namespace else {}
        answer = self.client.request(method, path, json=body or None, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else {}

    def token(self, policy: str, **more: Any) -> str:
        self.ask("PUT", "sys/policies/acl/of-the-test", policy=policy)
        return self.ask("POST", "auth/token/create", policies=["of-the-test"], **more)["auth"]["client_token"]

    def store(self, token: str | None = ROOT_TOKEN, **more: Any) -> VaultStore:
        settings = VaultSettings(url=self.url, **{"ca_file": str(self.ca_file), "timeout_s": 5} | more)
        store = VaultStore(settings, "production")
        if token:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("VAULT_TOKEN", token)
                store._client._logged_in()
        return store


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("VAULT_TOKEN", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("openbao"))
    yield server
    server.stop()


@pytest.fixture
def prefix(server: Server, request: pytest.FixtureRequest) -> str:
    """A place of its own for each test, with one secret in it."""
    prefix = f"tests/{request.node.name.split('[')[0]}"
    server.ask("POST", f"secret/data/{prefix}/production/postgres", data={"password.shop": VALUE})
    return prefix


def fails(store: VaultStore, match: str, *values: str, name: str = NAME) -> None:
    with pytest.raises(SecretError, match=match) as caught:
        store.get(name)
    assert_silent(caught.value, VALUE, ROOT_TOKEN, *values)


def test_stores_and_reads(server: Server, prefix: str) -> None:
    store = server.store(path_prefix=prefix)
    assert store.get(NAME).reveal() == VALUE
    store.set_many({"postgres.password.monitoring": "ünïcødé\n", "sentry.dsn": "x"})
    assert store.names() == ["postgres.password.monitoring", NAME, "sentry.dsn"]
    assert store.get("postgres.password.monitoring").reveal() == "ünïcødé\n"
    assert store.get(NAME).reveal() == VALUE


def test_missing_path_and_field(server: Server, prefix: str) -> None:
    with pytest.raises(SecretError) as caught:
        resolve(server.store(path_prefix=prefix), [NAME, "postgres.password.worklaod", "redis.password.x"])
    assert f"(secret/{prefix}/production/postgres, field password.worklaod); did you mean {NAME}?" in str(caught.value)
    assert f"(secret/{prefix}/production/redis, field password.x)" in str(caught.value)


def test_a_place_with_nothing_in_it(server: Server) -> None:
    assert server.store(path_prefix="nowhere").names() == []


def test_deleted_version(server: Server, prefix: str) -> None:
    server.ask("DELETE", f"secret/data/{prefix}/production/postgres")
    store = server.store(path_prefix=prefix)
    fails(store, "a secret is missing")
    store.set_many({NAME: "again"})
    assert store.get(NAME).reveal() == "again"


def test_a_change_made_meanwhile_is_not_overwritten(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = server.store(path_prefix=prefix)
    read = store._read_group

    def read_then_someone_writes(group: str) -> Any:
        seen = read(group)
        server.ask("POST", f"secret/data/{prefix}/production/{group}", data={"password.shop": "theirs"})
        return seen

    monkeypatch.setattr(store, "_read_group", read_then_someone_writes)
    with pytest.raises(SecretError, match="was changed by another client meanwhile"):
        store.set_many({NAME: "ours"})
    monkeypatch.undo()
    assert store.get(NAME).reveal() == "theirs"


@pytest.mark.parametrize("no_default_policy", [False, True])
def test_denied(no_default_policy: bool, server: Server, prefix: str) -> None:
    token = server.token('path "secret/data/other" { capabilities = ["read"] }', no_default_policy=no_default_policy)
    path = f"secret/{prefix}/production/postgres"
    fails(server.store(token, path_prefix=prefix), f"does not allow this token to read {path}", token)


def test_read_only(server: Server, prefix: str) -> None:
    token = server.token(f'path "secret/data/{prefix}/*" {{ capabilities = ["read"] }}')
    store = server.store(token, path_prefix=prefix)
    assert store.get(NAME).reveal() == VALUE
    with pytest.raises(SecretError, match=f"does not allow this token to write secret/{prefix}/production/postgres"):
        store.set_many({NAME: "new"})
    with pytest.raises(SecretError, match=f"does not allow this token to list secret/{prefix}/production"):
        store.names()


@pytest.mark.parametrize("no_default_policy", [False, True])
def test_expired_token(no_default_policy: bool, server: Server, prefix: str) -> None:
    policy = f'path "secret/data/{prefix}/*" {{ capabilities = ["read"] }}'
    token = server.token(policy, ttl="1s", no_default_policy=no_default_policy)
    store = server.store(token, path_prefix=prefix)
    assert store.get(NAME).reveal() == VALUE
    time.sleep(1.5)
    fails(store, "does not accept the token: expired, revoked or unknown", token)


def test_unknown_token(server: Server, prefix: str) -> None:
    fails(server.store("s.unknown", path_prefix=prefix), "does not accept the token", "s.unknown")


def test_approle(server: Server, prefix: str, tmp_path: Path) -> None:
    server.ask("POST", "sys/auth/machines", type="approle")
    server.ask("PUT", "sys/policies/acl/reader", policy=f'path "secret/data/{prefix}/*" {{ capabilities = ["read"] }}')
    server.ask("POST", "auth/machines/role/minipc", token_policies=["reader"], secret_id_num_uses=1)
    values = {
        "role_id": server.ask("GET", "auth/machines/role/minipc/role-id")["data"]["role_id"],
        "secret_id": server.ask("POST", "auth/machines/role/minipc/secret-id")["data"]["secret_id"],
    }
    for name, value in values.items():
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(value)
    settings = {
        "auth": "approle",
        "approle_mount": "machines",
        "role_id_file": str(tmp_path / "role_id"),
        "secret_id_file": str(tmp_path / "secret_id"),
        "path_prefix": prefix,
    }
    assert server.store(None, **settings).get(NAME).reveal() == VALUE
    fails(server.store(None, **settings), "refused the AppRole login at auth/machines", *values.values())
    fails(server.store(None, **settings | {"approle_mount": "nowhere"}), "refused the AppRole login at auth/nowhere")


def test_namespace(server: Server) -> None:
    server.ask("POST", "sys/namespaces/team")
    server.ask("POST", "sys/mounts/secret", namespace="team", type="kv", options={"version": "2"})
    store = server.store(namespace="team")
    deadline = time.monotonic() + 10  # a new engine upgrades itself for a moment before it accepts anything
    while True:
        try:
            store.set_many({NAME: "of the team"})
            break
        except SecretError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    assert store.get(NAME).reveal() == "of the team"
    fails(server.store(namespace="nobody"), "has no namespace nobody")


def test_wrong_mounts(server: Server, prefix: str) -> None:
    fails(server.store(mount="nowhere", path_prefix=prefix), "has no engine mounted for nowhere/")
    server.ask("POST", "sys/mounts/old", type="kv", options={"version": "1"})
    server.ask("POST", f"old/data/{prefix}/production/postgres", data={"password.shop": VALUE})
    fails(server.store(mount="old", path_prefix=prefix), "is not KV version 2")
    with pytest.raises(SecretError, match="did not answer like a KV version 2 engine"):
        server.store(mount="old", path_prefix="empty").set_many({NAME: "x"})


def test_system_cas_do_not_trust_it(server: Server, prefix: str) -> None:
    fails(server.store(None, ca_file=None, path_prefix=prefix), "no token for")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAULT_TOKEN", ROOT_TOKEN)
        fails(server.store(None, ca_file=None, path_prefix=prefix), "is not trusted by the system's CA bundle")


def test_copy_there_and_back(server: Server, tmp_path: Path) -> None:
    age = AgeStore(tmp_path / "a" / "production.age", tmp_path / "a.key")
    age.prepare()
    age.set_many({NAME: VALUE, "sentry.dsn": "https://key@sentry.example.org/1"})
    copy(age, server.store(path_prefix="copied"))
    back = AgeStore(tmp_path / "b" / "production.age", tmp_path / "b.key")
    copy(server.store(path_prefix="copied"), back)
    assert back.read(back.names()) == age.read(age.names())


def test_sealed(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        store = server.store()
        store.set_many({NAME: VALUE})
        server.ask("PUT", "sys/seal")
        fails(store, "is sealed; could not read secret/minipc/production/postgres")
    finally:
        server.stop()
    fails(store, "cannot be reached")
