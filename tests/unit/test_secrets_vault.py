"""Vault over real HTTP: stored values come back, and every error is clear and contains no values."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minipc.config.secrets_settings import SecretsSettings, VaultSettings
from minipc.core.errors import SecretError
from minipc.secrets import load
from minipc.secrets.store import resolve
from minipc.secrets.vault import VaultStore
from rehearsal.doubles.tls_authority import Authority
from tests.unit.secrets_leaks import assert_silent
from tests.unit.secrets_vault_server import FakeVault, Token

VALUE = "hunter2-correct-horse"
NEW = "swordfish-battery"
TOKEN = "root-token"
NAME = "postgres.password.parking"
PATH = "minipc/production/postgres"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def vault() -> Iterator[FakeVault]:
    with FakeVault() as server:
        server.put(PATH, {"password.parking": VALUE})
        yield server


def store(vault: FakeVault, **more: Any) -> VaultStore:
    return VaultStore(VaultSettings(url=vault.url, **more), "production")


def fails(store: VaultStore, match: str, *values: str) -> SecretError:
    with pytest.raises(SecretError, match=match) as caught:
        store.get(NAME)
    assert caught.value.next_step
    assert_silent(caught.value, VALUE, TOKEN, *values)
    return caught.value


# --- reading ------------------------------------------------------------------------------------------------------


def test_a_name_is_a_path_and_a_field(vault: FakeVault) -> None:
    assert store(vault).get(NAME).reveal() == VALUE
    assert [(seen.method, seen.path) for seen in vault.seen] == [("GET", f"/v1/secret/data/{PATH}")]


def test_mount_and_prefix(vault: FakeVault) -> None:
    vault.put("machines/box/production/postgres", {"password.parking": "other"})
    assert store(vault, path_prefix="machines/box").get(NAME).reveal() == "other"
    fails(store(vault, mount="kv"), "has no engine mounted for kv/minipc/production/postgres")


def test_one_request_for_each_path(vault: FakeVault) -> None:
    vault.put(PATH, {"password.parking": VALUE, "password.monitoring": "x"})
    vault.put("minipc/production/sentry", {"dsn": "y"})
    found = store(vault).read([NAME, "postgres.password.monitoring", "sentry.dsn", "redis.password.parking"])
    assert {name: secret.reveal() for name, secret in found.items()} == {
        NAME: VALUE,
        "postgres.password.monitoring": "x",
        "sentry.dsn": "y",
    }
    assert len(vault.seen) == 3


def test_names(vault: FakeVault) -> None:
    vault.put("minipc/production/sentry", {"dsn": "y", "Not A Name": "z"})
    vault.put("minipc/production/deeper/down", {"a": "b"})
    vault.put("minipc/staging/redis", {"password.parking": "z"})
    assert store(vault).names() == [NAME, "sentry.dsn"]


def test_names_when_there_are_none(vault: FakeVault) -> None:
    vault.versions.clear()
    assert store(vault).names() == []


def test_load_through_the_settings(vault: FakeVault) -> None:
    settings = SecretsSettings(backend="vault", age_recipients=[], vault=VaultSettings(url=vault.url))
    assert load("production", [NAME], settings=settings)[NAME].reveal() == VALUE


def test_missing_paths_and_fields_are_all_listed(vault: FakeVault) -> None:
    wanted = [NAME, "postgres.password.worklaod", "redis.password.parking"]
    with pytest.raises(SecretError) as caught:
        resolve(store(vault), wanted)
    message = str(caught.value)
    assert "2 secrets are missing in vault" in message
    assert f"postgres.password.worklaod (secret/{PATH}, field password.worklaod); did you mean {NAME}?" in message
    assert "redis.password.parking (secret/minipc/production/redis, field password.parking)" in message
    assert_silent(caught.value, VALUE, TOKEN)


def test_missing_is_told_also_where_listing_is_denied(vault: FakeVault) -> None:
    vault.tokens["weak"] = Token({f"data/{PATH}": {"read"}})
    with pytest.raises(SecretError, match=r"a secret is missing(.|\n)*field password\.nobody\)\n"):
        store_with_token(vault, "weak").get("postgres.password.nobody")


def test_a_deleted_version_is_missing(vault: FakeVault) -> None:
    vault.put(PATH, None)
    fails(store(vault), f"{NAME} \\(secret/{PATH}, field password.parking\\)")


@pytest.mark.parametrize("value", [12345, True, None, ["x"], {"x": "y"}])
def test_a_field_that_is_not_text(value: object, vault: FakeVault) -> None:
    vault.put(PATH, {"password.parking": value})
    fails(store(vault), f"secret/{PATH}, field password.parking: the value is not text", "12345")


def test_an_empty_field(vault: FakeVault) -> None:
    vault.put(PATH, {"password.parking": ""})
    fails(store(vault), f"the value of {NAME} is empty")


# --- writing ------------------------------------------------------------------------------------------------------


def test_what_is_stored_comes_back_and_other_fields_stay(vault: FakeVault) -> None:
    store(vault).set_many({"postgres.password.monitoring": "ünïcødé\n", "redis.password.parking": "r"})
    assert vault.get(PATH) == {"password.parking": VALUE, "password.monitoring": "ünïcødé\n"}
    assert vault.get("minipc/production/redis") == {"password.parking": "r"}
    assert store(vault).get("postgres.password.monitoring").reveal() == "ünïcødé\n"


def test_values_travel_in_the_body_only(vault: FakeVault, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store(vault).set_many({"sentry.dsn": VALUE})
    assert not [seen for seen in vault.seen if VALUE in seen.path + json.dumps(seen.headers)]
    assert caplog.records
    assert VALUE not in caplog.text
    assert TOKEN not in caplog.text


def test_keep_existing_never_replaces(vault: FakeVault) -> None:
    store(vault).set_many({NAME: "new", "postgres.password.monitoring": "x"}, keep_existing=True)
    assert vault.get(PATH) == {"password.parking": VALUE, "password.monitoring": "x"}


def test_storing_what_is_there_makes_no_version(vault: FakeVault) -> None:
    store(vault).set_many({NAME: VALUE})
    assert len(vault.versions[PATH]) == 1


def test_writing_over_a_deleted_version(vault: FakeVault) -> None:
    vault.put(PATH, None)
    store(vault).set_many({NAME: "new"})
    assert vault.get(PATH) == {"password.parking": "new"}


def test_a_change_made_meanwhile_is_not_overwritten(vault: FakeVault) -> None:
    vault.before_write = lambda: vault.put(PATH, {"password.parking": "of someone else"})
    with pytest.raises(SecretError, match=f"secret/{PATH} was changed by another client meanwhile") as caught:
        store(vault).set_many({NAME: NEW})
    assert_silent(caught.value, VALUE, TOKEN, NEW)
    assert vault.get(PATH) == {"password.parking": "of someone else"}


def test_a_write_that_stops_half_way_says_what_was_written(vault: FakeVault) -> None:
    vault.tokens["half"] = Token({f"data/{PATH}": {"read", "write"}, "data/minipc/production/redis": {"read"}})
    with pytest.raises(
        SecretError, match="does not allow this token to write secret/minipc/production/redis"
    ) as caught:
        store_with_token(vault, "half").set_many({NAME: NEW, "redis.password.parking": "x"})
    assert f"already written: secret/{PATH}" in caught.value.next_step
    assert "create and update" in caught.value.next_step
    assert_silent(caught.value, VALUE, NEW)


@pytest.mark.parametrize("values", [{"sentry.dsn": ""}, {"sentry.dsn": "nul\0"}, {"No Name": "x"}])
def test_a_bad_value_writes_nothing(values: dict[str, str], vault: FakeVault) -> None:
    with pytest.raises(SecretError):
        store(vault).set_many({NAME: "new"} | values)
    assert vault.seen == []


def test_an_engine_of_version_1(vault: FakeVault) -> None:
    vault.canned = (
        200,
        {"Content-Type": "application/json"},
        json.dumps({"data": {"password.parking": VALUE}}).encode(),
    )
    fails(store(vault), f"the engine at secret/{PATH} is not KV version 2")


# --- refusals -----------------------------------------------------------------------------------------------------


def store_with_token(vault: FakeVault, token: str, **more: Any) -> VaultStore:
    file = Path.home() / "token"
    file.touch(mode=0o600)
    file.write_text(f"{token}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VAULT_TOKEN")
        made = store(vault, token_file="~/token", **more)
        made._client._logged_in()
    return made


def test_sealed(vault: FakeVault) -> None:
    vault.sealed = True
    assert "unseal" in fails(store(vault), f"{vault.url} is sealed; could not read secret/{PATH}").next_step


@pytest.mark.parametrize("says_invalid_token", [False, True], ids=["OpenBao", "Vault"])
def test_expired_token(says_invalid_token: bool, vault: FakeVault) -> None:
    vault.says_invalid_token = says_invalid_token
    expired = store_with_token(vault, "s.expired-token")
    error = fails(expired, f"does not accept the token: expired, revoked or unknown; could not read secret/{PATH}")
    assert "log in again" in error.next_step
    assert_silent(error, "s.expired-token")


@pytest.mark.parametrize("may_look_itself_up", [True, False])
def test_denied(may_look_itself_up: bool, vault: FakeVault) -> None:
    vault.tokens["weak"] = Token({"data/other": {"read"}}, may_look_itself_up=may_look_itself_up)
    error = fails(
        store_with_token(vault, "weak"),
        f"does not allow this token to read secret/{PATH}$|does not allow this token to read secret/{PATH}\n",
    )
    assert error.next_step == "give the token's policy read there"


def test_listing_denied(vault: FakeVault) -> None:
    vault.tokens["weak"] = Token({f"data/{PATH}": {"read"}})
    with pytest.raises(SecretError, match="does not allow this token to list secret/minipc/production"):
        store_with_token(vault, "weak").names()


def test_no_token(vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAULT_TOKEN")
    error = fails(store(vault), f"no token for {vault.url}")
    assert "VAULT_TOKEN" in error.next_step
    assert vault.seen == []


@pytest.mark.parametrize("token", ["tok\x07en-bell", "tökén", "two\nlines"])
def test_a_token_that_no_header_can_carry(token: str, vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", token)
    fails(store(vault), "contains characters that are not allowed in a token", token)


def test_token_file(vault: FakeVault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VAULT_TOKEN")
    fails(store(vault, token_file="~/token"), f"the Vault token file {tmp_path}/token is missing")
    (tmp_path / "token").write_text("\n")
    (tmp_path / "token").chmod(0o600)
    fails(store(vault, token_file="~/token"), f"the Vault token file {tmp_path}/token is empty")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert store(vault, token_file="~/token").get(NAME).reveal() == VALUE
    (tmp_path / "token").chmod(0o644)
    fails(store(vault, token_file="~/token"), "accessible to others")


def test_namespace(vault: FakeVault) -> None:
    vault.namespaces = {"team/one"}
    assert store(vault, namespace="team/one").get(NAME).reveal() == VALUE
    assert vault.seen[-1].headers["X-Vault-Namespace"] == "team/one"
    assert "namespace" in fails(store(vault, namespace="team/two"), "has no namespace team/two").next_step


def test_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = fails(VaultStore(VaultSettings(url=f"http://127.0.0.1:{port}"), "production"), "cannot be reached")
    assert "Connection refused" in str(error)


@pytest.mark.timeout(20)
def test_no_such_host() -> None:
    settings = VaultSettings(url="https://vault.invalid:8200", timeout_s=2)
    fails(VaultStore(settings, "production"), r"https://vault\.invalid:8200 (cannot be reached|did not answer)")


@pytest.mark.timeout(10)
def test_a_server_that_never_answers(vault: FakeVault) -> None:
    vault.delay_s = 2
    fails(store(vault, timeout_s=0.2), f"{vault.url} did not answer within 0.2 s; could not read")
    assert len(vault.seen) == 1, "asked again after a timeout"


@pytest.mark.timeout(10)
def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        fails(VaultStore(VaultSettings(url=url, timeout_s=0.2), "production"), "did not answer within 0.2 s")


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (429, "limits the rate of requests"),
        (500, "answered InternalServerError; could not read"),
        (501, "is not initialised"),
        (502, "answered BadGateway"),
        (503, "is not ready"),
        (418, "answered UnexpectedError"),
        (400, "answered InvalidRequest"),
        (401, "answered Unauthorized"),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_other_answers(status: int, match: str, kind: str, vault: FakeVault) -> None:
    # A server or proxy may repeat in its error what it was sent or what it holds.
    content = json.dumps({"errors": [f"echo {VALUE} {TOKEN}"]}) if "json" in kind else f"<html>{VALUE} {TOKEN}</html>"
    vault.canned = (status, {"Content-Type": kind}, content.encode())
    fails(store(vault), match)


@pytest.mark.parametrize(
    ("status", "kind", "content"),
    [
        (200, "text/html", f"<html>{VALUE}</html>"),
        (200, "application/json", f'"{VALUE}"'),
        (200, "application/json", f'{{"data": "{VALUE}"}}'),
        (200, "application/json", f'{{"data": {{"data": "{VALUE}"'),
        (204, "application/json", ""),
        (404, "text/html", f"<html>no {VALUE} here</html>"),
        (404, "application/json", f'["{VALUE}"]'),
        (404, "application/json", '{"data": null}'),
    ],
)
def test_something_else_answers(status: int, kind: str, content: str, vault: FakeVault) -> None:
    vault.canned = (status, {"Content-Type": kind}, content.encode())
    fails(store(vault), "did not answer like a KV version 2 engine")


def test_the_token_does_not_follow_a_redirect(vault: FakeVault) -> None:
    with FakeVault() as elsewhere:
        vault.canned = (307, {"Location": f"{elsewhere.url}/v1/secret/data/{PATH}"}, b"")
        assert "active node" in fails(store(vault), "redirects to another address").next_step
        assert elsewhere.seen == []


# --- AppRole ------------------------------------------------------------------------------------------------------


@pytest.fixture
def approle(vault: FakeVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("VAULT_TOKEN")
    vault.roles["the-role", "the-secret-id"] = "s.from-login"
    vault.tokens["s.from-login"] = Token({f"data/{PATH}": {"read"}})
    files = {}
    for name, content in (("role_id", "the-role\n"), ("secret_id", "the-secret-id\n")):
        files[name] = tmp_path / name
        files[name].touch(mode=0o600)
        files[name].write_text(content)
    return {"auth": "approle", "role_id_file": str(files["role_id"]), "secret_id_file": str(files["secret_id"])}


def test_approle_logs_in_once(vault: FakeVault, approle: dict[str, Any]) -> None:
    made = store(vault, **approle)
    assert made.get(NAME).reveal() == VALUE
    made.get(NAME)
    assert [seen.path for seen in vault.seen] == ["/v1/auth/approle/login"] + 2 * [f"/v1/secret/data/{PATH}"]
    assert vault.seen[1].headers["X-Vault-Token"] == "s.from-login"


def test_approle_does_not_use_a_token_that_lies_around(
    vault: FakeVault, approle: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    (tmp_path / ".vault-token").write_text(TOKEN)
    store(vault, **approle).get(NAME)
    assert TOKEN not in [seen.headers.get("X-Vault-Token") for seen in vault.seen]


def test_approle_refused(vault: FakeVault, approle: dict[str, Any]) -> None:
    vault.roles.clear()
    error = fails(store(vault, **approle), "refused the AppRole login at auth/approle", "the-secret-id", "the-role")
    assert approle["secret_id_file"] in error.next_step


def test_approle_at_another_mount(vault: FakeVault, approle: dict[str, Any]) -> None:
    fails(store(vault, **approle, approle_mount="machines"), "refused the AppRole login at auth/machines")


def test_approle_sealed(vault: FakeVault, approle: dict[str, Any]) -> None:
    vault.sealed = True
    fails(store(vault, **approle), "is sealed; could not log in at auth/approle", "the-secret-id")


def test_approle_answer_of_something_else(vault: FakeVault, approle: dict[str, Any]) -> None:
    vault.canned = (200, {"Content-Type": "text/html"}, b"<html>the-secret-id</html>")
    fails(store(vault, **approle), "did not answer like a KV version 2 engine", "the-secret-id")


def test_approle_token_that_expired_later(vault: FakeVault, approle: dict[str, Any]) -> None:
    made = store(vault, **approle)
    made.get(NAME)
    del vault.tokens["s.from-login"]
    assert "new secret id" in fails(made, "does not accept the token", "s.from-login").next_step


def test_approle_secret_id_that_others_may_read(vault: FakeVault, approle: dict[str, Any]) -> None:
    Path(approle["secret_id_file"]).chmod(0o640)
    fails(store(vault, **approle), "the AppRole secret id file .* is accessible to others", "the-secret-id")
    assert vault.seen == []


def test_approle_without_its_file(vault: FakeVault, approle: dict[str, Any]) -> None:
    Path(approle["secret_id_file"]).unlink()
    fails(store(vault, **approle), "the AppRole secret id file .* is missing")


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_vault(tmp_path: Path) -> Iterator[tuple[FakeVault, Authority]]:
    authority = Authority(tmp_path / "authority")
    with FakeVault(authority.server) as server:
        server.put(PATH, {"password.parking": VALUE})
        yield server, authority


def test_tls_with_our_own_ca(tls_vault: tuple[FakeVault, Authority]) -> None:
    vault, authority = tls_vault
    assert store(vault, ca_file=str(authority.bundle)).get(NAME).reveal() == VALUE


def test_tls_with_the_wrong_ca(tls_vault: tuple[FakeVault, Authority], tmp_path: Path) -> None:
    vault, _ = tls_vault
    other = Authority(tmp_path / "other")
    error = fails(
        store(vault, ca_file=str(other.bundle)), f"{vault.url} has a certificate that is not trusted by {other.bundle}"
    )
    assert "ca_file" in error.next_step
    assert vault.seen == [], "the token was sent to a server that is not trusted"


def test_tls_without_our_ca(tls_vault: tuple[FakeVault, Authority]) -> None:
    fails(store(tls_vault[0]), "is not trusted by the system's CA bundle")


def test_tls_certificate_for_another_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "127.0.0.2")
    with FakeVault(authority.server) as vault:
        fails(store(vault, ca_file=str(authority.bundle)), r"is not trusted by .*ca\.pem \(.*127\.0\.0\.1")


def test_ca_bundle_that_is_missing_or_none(tls_vault: tuple[FakeVault, Authority], tmp_path: Path) -> None:
    fails(store(tls_vault[0], ca_file=str(tmp_path / "nowhere.pem")), r"the CA bundle .*nowhere\.pem is missing")
    (tmp_path / "garbage.pem").write_text("not a certificate")
    fails(store(tls_vault[0], ca_file=str(tmp_path / "garbage.pem")), r"garbage\.pem")


def test_ca_bundle_that_goes_away(tls_vault: tuple[FakeVault, Authority]) -> None:
    vault, authority = tls_vault
    made = store(vault, ca_file=str(authority.bundle))
    made.get(NAME)
    made._client._client.session.close()
    authority.bundle.unlink()
    fails(made, f"the CA bundle {authority.bundle} cannot be read")


def test_plain_http_where_https_is_meant(vault: FakeVault) -> None:
    url = vault.url.replace("http:", "https:")
    fails(VaultStore(VaultSettings(url=url, timeout_s=2), "production"), "is not trusted|cannot be reached")
