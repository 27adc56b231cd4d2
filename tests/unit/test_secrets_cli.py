"""`minipc secrets`: what it prints, and that it never prints a value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minipc import config
from minipc.cli.secrets import secrets
from minipc.config.load import group_data
from minipc.core import paths
from minipc.core.errors import ConfigError, MinipcError, RefusedError, SecretError
from minipc.secrets import backends, catalogue
from minipc.secrets.age import AgeStore
from tests.unit.secrets_leaks import assert_silent
from tests.unit.secrets_vault_server import FakeVault

REQUIRED = sum(not entry.optional for entry in catalogue.for_environment("lab"))
VALUE = "https://hunter2@sentry.example.org/1"

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on a repository and a home of its own; production is configured as the lab is."""
    lab = config.load("lab")
    monkeypatch.setattr(config, "load", lambda environment: lab)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.setenv("MINIPC_AGE_KEY_FILE", str(tmp_path / "age.key"))
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VAULT_TOKEN", "root-token")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(secrets, arguments, input=stdin)

    return run


@pytest.fixture
def store(run: Run) -> AgeStore:
    assert run("init").exit_code == 0
    store = backends.open_store("production")
    assert isinstance(store, AgeStore)
    return store


def error_of(result: Result) -> MinipcError:
    assert isinstance(result.exception, MinipcError), result.output
    return result.exception


def test_init_makes_key_file_and_values(run: Run) -> None:
    result = run("init")
    assert result.exit_code == 0, result.output
    assert "created age key" in result.output
    assert "generated postgres.password.parking" in result.output
    assert "optional, set it yourself: watcher.alive_url" in result.output
    assert "generated" not in run("init").output


def test_renew_replaces_what_the_machine_proves_itself_with(run: Run, store: AgeStore) -> None:
    before = {name: store.get(name).reveal() for name in store.names()}
    result = run("renew", "--machine")
    assert result.exit_code == 0, result.output
    changed = {name for name, value in before.items() if store.get(name).reveal() != value}
    assert changed == set(catalogue.generation(config.load("lab")))
    assert not any(value in result.output for value in before.values())
    assert run("renew").exit_code == 2, "nothing was named"


def test_list_shows_names_and_states_only(run: Run, store: AgeStore) -> None:
    store.set_many({"left.over": VALUE})
    result = run("list")
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert result.output.startswith(f"age: {store.path}")
    assert " present " in lines["postgres.password.parking"]
    assert "missing, optional" in lines["watcher.alive_url"]
    assert "present, unused" in lines["left.over"]
    for name in store.names():
        assert store.get(name).reveal() not in result.output


def test_check_passes_when_nothing_required_is_missing(run: Run, store: AgeStore) -> None:
    result = run("check")
    assert result.exit_code == 0
    assert f"{REQUIRED} secrets readable" in result.output


def test_check_names_what_is_missing(run: Run, store: AgeStore) -> None:
    store.path.unlink()
    store.prepare()
    message = str(error_of(run("check")))
    assert f"{REQUIRED} secrets are missing" in message
    assert "redis.password.monitoring" in message
    assert "sentry.example" not in message


def test_set_reads_standard_input(run: Run, store: AgeStore) -> None:
    result = run("set", "watcher.alive_url", stdin=f"{VALUE}\n")
    assert result.exit_code == 0, result.output
    assert store.get("watcher.alive_url").reveal() == VALUE
    assert VALUE not in result.output


def test_set_asks_twice_without_echo(run: Run, store: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipc.cli.secrets._is_terminal", lambda: True)
    result = run("set", "watcher.alive_url", stdin=f"{VALUE}\n{VALUE}\n")
    assert result.exit_code == 0, result.output
    assert "value of watcher.alive_url" in result.output
    assert VALUE not in result.output
    assert store.get("watcher.alive_url").reveal() == VALUE


@pytest.mark.parametrize(
    ("stdin", "match"), [("", "is empty"), ("\n", "is empty"), (b"\xff\xfe", "not UTF-8"), ("a\0b", "not UTF-8")]
)
def test_set_refuses_what_is_no_value(stdin: str | bytes, match: str, run: Run, store: AgeStore) -> None:
    before = store.path.read_bytes()
    assert match in str(error_of(run("set", "watcher.alive_url", stdin=stdin)))
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    "value", ["p@ss", "a/b", "50%", "a#b", "what?", 'say "x"', "back\\slash", "two words", "ünïcode", "a" * 73]
)
@pytest.mark.parametrize("name", ["redis.password.parking", "postgres.password.parking", "offsite.rest_password"])
def test_set_refuses_a_password_that_a_program_cannot_take(name: str, value: str, run: Run, store: AgeStore) -> None:
    before = store.path.read_bytes()
    error = error_of(run("set", name, stdin=f"{value}\n"))
    assert error.what == f"the value of {name} cannot be used"
    assert error.next_step.startswith("allowed: letters, digits and -_.~ only")
    assert_silent(error, value)
    assert store.path.read_bytes() == before


def test_check_names_a_value_that_was_stored_by_other_means(run: Run, store: AgeStore) -> None:
    store.set_many({"redis.password.parking": "two words"})
    assert str(error_of(run("check"))).startswith("the value of redis.password.parking cannot be used")


def test_set_suggests_the_nearest_name(run: Run, store: AgeStore) -> None:
    message = str(error_of(run("set", "watcher.alive_ulr", stdin=VALUE)))
    assert "did you mean watcher.alive_url?" in message
    assert VALUE not in message


@pytest.mark.parametrize(
    "arguments", [("watcher.alive_url", VALUE), ("watcher.alive_url", "--", VALUE), (f"watcher.alive_url={VALUE}",), ()]
)
def test_a_value_on_the_command_line_is_refused_and_not_repeated(
    arguments: tuple[str, ...], run: Run, store: AgeStore
) -> None:
    result = run("set", *arguments, stdin="x")
    assert result.exit_code != 0
    assert VALUE not in result.output + str(result.exception)
    assert "watcher.alive_url" not in store.names()


def test_copy_to_vault_and_back(run: Run, store: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeVault() as server:
        with_vault = config.parse(group_data("lab") | {"secrets_vault": {"url": server.url}})
        monkeypatch.setattr(config, "load", lambda environment: with_vault)
        result = run("copy", "--from", "age", "--to", "vault")
        assert result.exit_code == 0, result.output
        assert f"{REQUIRED} copied, 0 already the same" in result.output
        assert server.get("minipc/production/postgres") == {
            "password.parking_owner": store.get("postgres.password.parking_owner").reveal(),
            "password.parking": store.get("postgres.password.parking").reveal(),
            "password.monitoring": store.get("postgres.password.monitoring").reveal(),
        }
        assert f"0 copied, {REQUIRED} already the same" in run("copy", "--from", "vault", "--to", "age").output
        store.set_many({"postgres.password.parking": "changed"})
        assert isinstance(error_of(run("copy", "--from", "vault", "--to", "age")), RefusedError)
        assert (
            f"1 copied, {REQUIRED - 1} already the same"
            in run("copy", "--from", "vault", "--to", "age", "--overwrite").output
        )


def test_copy_needs_two_sides(run: Run, store: AgeStore) -> None:
    assert "are the same" in run("copy", "--from", "age", "--to", "age").output
    assert isinstance(error_of(run("copy", "--from", "age", "--to", "vault")), ConfigError)
    assert isinstance(error_of(run("copy", "--from", "age", "--to", "vault", "--inventory", "lab")), ConfigError)


def test_the_lab_has_its_own(run: Run, store: AgeStore) -> None:
    assert isinstance(error_of(run("list", "--inventory", "lab")), SecretError)
    assert run("init", "--inventory", "lab").exit_code == 0
    assert "lab.age" in run("list", "--inventory", "lab").output
