"""The age file: what is stored comes back, bad input loses nothing, and no error says a value."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pyrage
import pytest

from minipc.config.secrets_settings import SecretsSettings
from minipc.core import files, paths
from minipc.core.errors import ConfigError, MinipcError, SecretError
from minipc.secrets import age, backends, load, open_store
from minipc.secrets.age import AgeStore
from minipc.secrets.identity import create_identity, read_identities
from tests.unit.secrets_leaks import assert_silent

VALUE = "hunter2-correct-horse"
OTHER = "swordfish-battery"
AGE = SecretsSettings(backend="age", age_recipients=[], vault=None)


@pytest.fixture
def store(tmp_path: Path) -> AgeStore:
    store = AgeStore(tmp_path / "repository" / "production.age", tmp_path / "config" / "age.key")
    store.prepare()
    store.set_many({"postgres.password.parking": VALUE, "redis.password.parking": OTHER})
    return store


def seal(store: AgeStore, content: bytes) -> None:
    """Puts a content into the file as someone with the age tool would."""
    store.path.write_bytes(pyrage.encrypt(content, [read_identities(store.key_path)[0].to_public()]))


def fails(store: AgeStore, match: str) -> SecretError:
    with pytest.raises(SecretError, match=match) as caught:
        store.get("postgres.password.parking")
    assert caught.value.next_step
    assert_silent(caught.value, VALUE, OTHER)
    return caught.value


# --- round trip ---------------------------------------------------------------------------------------------------


def test_what_is_stored_comes_back(store: AgeStore) -> None:
    again = AgeStore(store.path, store.key_path)
    assert again.get("postgres.password.parking").reveal() == VALUE
    assert again.names() == ["postgres.password.parking", "redis.password.parking"]
    assert set(again.read(["redis.password.parking", "sentry.dsn"])) == {"redis.password.parking"}


@pytest.mark.parametrize(
    "value",
    [
        "12345",
        "yes",
        "null",
        "~",
        "a: b # c",
        "'\"",
        "  blanks  ",
        "ünïcødé ✓",
        "line\nline\n",
        "\t\r\n\x07",
        "=" * 5000,
    ],
)
def test_any_text_survives_yaml(value: str, store: AgeStore) -> None:
    store.set_many({"sentry.dsn": value})
    assert store.get("sentry.dsn").reveal() == value


def test_setting_one_keeps_the_others(store: AgeStore) -> None:
    store.set_many({"postgres.password.parking": "new"})
    assert store.get("postgres.password.parking").reveal() == "new"
    assert store.get("redis.password.parking").reveal() == OTHER


def test_keep_existing_never_replaces(store: AgeStore) -> None:
    store.set_many({"postgres.password.parking": "new", "sentry.dsn": "added"}, keep_existing=True)
    assert store.get("postgres.password.parking").reveal() == VALUE
    assert store.get("sentry.dsn").reveal() == "added"


def test_nothing_to_store_writes_nothing(store: AgeStore) -> None:
    before = store.path.read_bytes()
    store.set_many({})
    store.set_many({"postgres.password.parking": "new"}, keep_existing=True)
    assert store.path.read_bytes() == before


def test_the_same_value_again_encrypts_for_the_present_key(store: AgeStore) -> None:
    new = pyrage.x25519.Identity.generate()
    store.key_path.write_text(f"{new}\n{store.key_path.read_text()}")
    store.set_many({"postgres.password.parking": VALUE})
    store.key_path.write_text(f"{new}\n")
    assert store.get("postgres.password.parking").reveal() == VALUE


def test_the_version_before_is_kept(store: AgeStore) -> None:
    before = store.path.read_bytes()
    store.set_many({"postgres.password.parking": "new"})
    backup = Path(f"{store.path}.bak")
    assert backup.read_bytes() == before
    assert AgeStore(backup, store.key_path).get("postgres.password.parking").reveal() == VALUE


def test_files_are_private_and_encrypted(store: AgeStore) -> None:
    for path in (store.path, store.key_path, Path(f"{store.path}.bak")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in store.path.parent.iterdir():
        assert VALUE.encode() not in path.read_bytes()
        assert b"postgres" not in path.read_bytes()


def test_decrypted_text_is_never_on_disk(store: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    sync = os.fsync

    def look(handle: int) -> None:
        seen.extend(path.read_bytes() for path in store.path.parent.iterdir())
        sync(handle)

    monkeypatch.setattr(os, "fsync", look)
    store.set_many({"sentry.dsn": VALUE})
    assert seen
    assert not [content for content in seen if VALUE.encode() in content or b"sentry" in content]


def test_a_symbolic_link_is_written_through(store: AgeStore, tmp_path: Path) -> None:
    link = tmp_path / "link.age"
    link.symlink_to(store.path)
    AgeStore(link, store.key_path).set_many({"sentry.dsn": "x"})
    assert link.is_symlink()
    assert store.get("sentry.dsn").reveal() == "x"


def test_further_recipients_can_open_it(store: AgeStore) -> None:
    safe = pyrage.x25519.Identity.generate()
    AgeStore(store.path, store.key_path, [str(safe.to_public())]).set_many({"sentry.dsn": "x"})
    assert b"sentry.dsn: x" in pyrage.decrypt(store.path.read_bytes(), [safe])
    assert store.get("sentry.dsn").reveal() == "x"


def test_an_invalid_recipient_changes_nothing(store: AgeStore) -> None:
    before = store.path.read_bytes()
    with pytest.raises(SecretError, match="secrets_age_recipients: 'age1nonsense'") as caught:
        AgeStore(store.path, store.key_path, ["age1nonsense"]).set_many({"sentry.dsn": OTHER})
    assert_silent(caught.value, VALUE, OTHER)
    assert store.path.read_bytes() == before


def test_an_old_key_in_the_key_file_still_opens(store: AgeStore) -> None:
    old = store.key_path.read_text()
    store.key_path.write_text(f"{pyrage.x25519.Identity.generate()}\n{old}")
    assert store.get("postgres.password.parking").reveal() == VALUE


# --- the key ------------------------------------------------------------------------------------------------------


def test_missing_key(store: AgeStore) -> None:
    store.key_path.unlink()
    error = fails(store, f"the age key {store.key_path} is missing")
    assert "break-glass" in error.next_step
    assert "MINIPC_AGE_KEY_FILE" in error.next_step


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_key_that_others_may_read_is_refused(mode: int, store: AgeStore) -> None:
    store.key_path.chmod(mode)
    error = fails(store, f"accessible to others \\(mode {mode:04o}\\)")
    assert f"chmod 600 {store.key_path}" in error.next_step


def test_wrong_key(store: AgeStore) -> None:
    store.key_path.unlink()
    create_identity(store.key_path)
    public = str(read_identities(store.key_path)[0].to_public())
    assert public in str(fails(store, "is not encrypted for the key in"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "contains no age identity"),
        ("# only a comment\n", "contains no age identity"),
        ("AGE-SECRET-KEY-1NONSENSE\n", "line 1 of .* is not an age identity"),
        ("# comment\n\nage1publickey\n", "line 3 of .* is not an age identity"),
        (f"{VALUE}\n", "line 1 of .* is not an age identity"),
    ],
)
def test_key_file_without_a_usable_key(content: str, match: str, store: AgeStore) -> None:
    store.key_path.write_text(content)
    fails(store, match)


def test_key_file_that_is_not_text(store: AgeStore) -> None:
    store.key_path.write_bytes(b"\xff\xfe\x00\x80")
    fails(store, "line 1 of .* is not an age identity")


def test_key_path_that_is_a_directory(store: AgeStore) -> None:
    store.key_path.unlink()
    store.key_path.mkdir()
    fails(store, "cannot be read|is not a regular file")


@pytest.mark.timeout(10)
def test_key_path_that_is_a_pipe_does_not_hang(store: AgeStore) -> None:
    store.key_path.unlink()
    os.mkfifo(store.key_path, 0o600)
    fails(store, "is not a regular file")


def test_an_identity_is_never_replaced(store: AgeStore) -> None:
    before = store.key_path.read_bytes()
    assert create_identity(store.key_path) is False
    assert store.key_path.read_bytes() == before


# --- the file -----------------------------------------------------------------------------------------------------


def test_missing_file(store: AgeStore) -> None:
    store.path.unlink()
    assert "minipc secrets init" in fails(store, "production.age does not exist").next_step
    with pytest.raises(SecretError, match="does not exist"):
        store.set_many({"sentry.dsn": "x"})


@pytest.mark.parametrize("content", [b"", b"\0", f"postgres.password.parking: {VALUE}\n".encode()])
def test_file_that_is_not_age(content: bytes, store: AgeStore) -> None:
    store.path.write_bytes(content)
    assert ".bak" in fails(store, rf"is not an age file \({len(content)} bytes\)").next_step


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7, 0.9, 0.99])
def test_file_cut_short(kept: float, store: AgeStore) -> None:
    content = store.path.read_bytes()
    store.path.write_bytes(content[: int(len(content) * kept)])
    fails(store, "is damaged or incomplete|is not encrypted for the key")


def test_file_with_a_flipped_bit_in_the_payload(store: AgeStore) -> None:
    content = bytearray(store.path.read_bytes())
    content[-30] ^= 1
    store.path.write_bytes(content)
    fails(store, "is damaged or incomplete")


def test_file_made_for_another_key(store: AgeStore) -> None:
    stranger = pyrage.x25519.Identity.generate().to_public()
    store.path.write_bytes(pyrage.encrypt(b"a.b: c\n", [stranger]))
    fails(store, "is not encrypted for the key in")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (f"- {VALUE}\n", "is not a mapping of names"),
        (f"{VALUE}\n", "is not a mapping of names"),
        (f"5: {VALUE}\n", "is not a mapping of names"),
        (f"a.b: '{VALUE}\nc.d: x\n", "is not valid YAML, line"),
        (f"a.b: {VALUE}: {OTHER}\n", "is not valid YAML, line 1"),
        (f"a.b: {VALUE}\na.b: {OTHER}\n", "line 1, or gives a name twice"),
        (f"? [{VALUE}]\n: x\n", "is not valid YAML|is not a mapping"),
        (f"a.b: !!python/name:{VALUE} ''\n", "is not valid YAML, line 1"),
        ("a.b: 2024-99-99\n", "is not valid YAML"),
        ("a.b: " + "[" * 2000, "is not valid YAML"),
        ("a.b: 12345\n", "the value of a.b is not text"),
        ("a.b: yes\n", "the value of a.b is not text"),
        ("a.b:\n", "the value of a.b is not text"),
        (f"a.b: {{c: {VALUE}}}\n", "the value of a.b is not text"),
        ("a.b: ''\n", "the value of a.b is empty"),
        (f"Nonsense {VALUE}: x\n", "not the name of a secret"),
    ],
)
def test_content_that_is_not_names_and_texts(content: str, match: str, store: AgeStore) -> None:
    seal(store, content.encode())
    fails(store, match)


def test_content_that_is_not_utf8(store: AgeStore) -> None:
    seal(store, f"a.b: {VALUE}".encode() + b"\xff")
    fails(store, "is not valid YAML")


def test_empty_content_has_no_secrets(store: AgeStore) -> None:
    seal(store, b"# nothing yet\n")
    assert store.names() == []


# --- nothing is lost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"sentry.dsn": ""}, {"sentry.dsn": "nul\0"}, {"No Name": "x"}, {"a.b": 5}])
def test_a_bad_value_leaves_everything_as_it_was(values: dict[str, str], store: AgeStore) -> None:
    before = {path.name: path.read_bytes() for path in store.path.parent.iterdir()}
    with pytest.raises(SecretError):
        store.set_many({"postgres.password.parking": "new"} | values)
    assert {path.name: path.read_bytes() for path in store.path.parent.iterdir()} == before


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_rest(
    broken: str, store: AgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.path.read_bytes()
    directory = sorted(store.path.parent.iterdir())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), full)
    with pytest.raises(SecretError, match="cannot be written: No space left on device") as caught:
        store.set_many({"sentry.dsn": VALUE})
    monkeypatch.undo()
    assert_silent(caught.value, VALUE)
    assert store.path.read_bytes() == before
    assert sorted(store.path.parent.iterdir()) == directory


def test_a_damaged_file_is_not_overwritten(store: AgeStore) -> None:
    content = store.path.read_bytes()[:-20]
    store.path.write_bytes(content)
    with pytest.raises(SecretError, match="damaged or incomplete"):
        store.set_many({"sentry.dsn": "x"})
    with pytest.raises(SecretError, match="damaged or incomplete"):
        store.prepare()
    assert store.path.read_bytes() == content


def test_no_new_key_is_made_for_a_file_whose_key_is_missing(store: AgeStore) -> None:
    store.key_path.unlink()
    with pytest.raises(SecretError, match=r"age\.key is missing"):
        store.prepare()
    assert not store.key_path.exists()


def test_writers_at_the_same_time_lose_nothing(store: AgeStore) -> None:
    def write(writer: int) -> None:
        for number in range(5):
            AgeStore(store.path, store.key_path).set_many({f"writer{writer}.value{number}": "x"})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.names()) == 2 + 4 * 5


def test_a_writer_that_never_ends_is_not_waited_for(store: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age, "LOCK_WAIT_S", 0.1)
    with (
        files.lock(store.path.parent, 1),
        pytest.raises(MinipcError, match="has been locked by another process"),
    ):
        store.set_many({"sentry.dsn": "x"})


# --- load ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgeStore:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.setenv("MINIPC_AGE_KEY_FILE", str(tmp_path / "elsewhere" / "key.txt"))
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))
    store = open_store("production", AGE)
    assert isinstance(store, AgeStore)
    store.prepare()
    store.set_many({"postgres.password.parking": VALUE, "redis.password.parking": OTHER})
    return store


def test_load_resolves_all_names_at_once(production: AgeStore) -> None:
    wanted = ["postgres.password.parking", "redis.password.parking"]
    secrets = load("production", wanted, optional=["sentry.dsn"], settings=AGE)
    assert {name: secrets[name].reveal() for name in secrets} == dict(zip(wanted, (VALUE, OTHER), strict=True))
    assert secrets.optional("sentry.dsn") is None


def test_load_lists_every_missing_name_with_the_nearest_one(production: AgeStore) -> None:
    wanted = [
        "postgres.password.worklaod",
        "redis.password.parking",
        "redis.pasword.parking",
        "grafana.admin_password",
    ]
    with pytest.raises(SecretError) as caught:
        load("production", wanted, settings=AGE)
    message = str(caught.value)
    assert "3 secrets are missing in age" in message
    assert "postgres.password.worklaod; did you mean postgres.password.parking?" in message
    assert "redis.pasword.parking; did you mean redis.password.parking?" in message
    assert "- grafana.admin_password\n" in message
    assert "minipc secrets set NAME" in message
    assert_silent(caught.value, VALUE, OTHER)


def test_get_of_an_unknown_name_suggests_the_nearest(production: AgeStore) -> None:
    with pytest.raises(SecretError, match=r"a secret is missing(.|\n)*did you mean redis\.password\.parking\?"):
        production.get("redis.password.worklod")


def test_key_and_file_are_where_the_docs_say(
    production: AgeStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert production.path == tmp_path / "repository" / "secrets" / "production.age"
    assert production.key_path == tmp_path / "elsewhere" / "key.txt"
    monkeypatch.delenv("MINIPC_AGE_KEY_FILE")
    monkeypatch.setenv("MINIPC_CONFIG_DIR", str(tmp_path / "config"))
    assert backends.age_key_file("production") == tmp_path / "config" / "age.key"


def test_the_lab_never_touches_the_repository_or_the_operators_key(production: AgeStore, tmp_path: Path) -> None:
    lab = open_store("lab", AGE)
    assert isinstance(lab, AgeStore)
    assert lab.path.is_relative_to(tmp_path / "state" / "lab" / "secrets")
    assert lab.key_path.is_relative_to(tmp_path / "state" / "lab" / "secrets")


@pytest.mark.parametrize("environment", ["", "../production", "Production", "a/b", "x" * 40])
def test_environments_that_are_no_names(environment: str) -> None:
    with pytest.raises(ConfigError, match="there is no environment"):
        open_store(environment, AGE)


def test_vault_that_is_not_configured() -> None:
    with pytest.raises(ConfigError, match="vault is not configured"):
        open_store("production", AGE, backend="vault")


def test_two_rehearsals_at_once_have_a_set_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPC_LAB_SECRETS_DIR", str(tmp_path / "second"))
    assert backends.age_file("lab") == tmp_path / "second" / "lab.age"
    assert backends.age_key_file("lab") == tmp_path / "second" / "age.key"
    assert (tmp_path / "second").stat().st_mode & 0o777 == 0o700
