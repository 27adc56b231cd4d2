"""The passphrase of the age key, and keys of plugins: nothing is lost, a run asks once, no error says it."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
from click.testing import CliRunner, Result

from minipc.cli.secrets import secrets
from minipc.core import files
from minipc.core.environment import LAB
from minipc.core.errors import SecretError
from minipc.core.paths import ROOT
from minipc.secrets import age, identity, key_file
from minipc.secrets.age import AgeStore
from playbooks import doctor
from tests.unit.age_plugin import TOKEN, plugin_on_path
from tests.unit.bundle_home import quick_seal
from tests.unit.secrets_leaks import assert_silent

PASSPHRASE = "drum-lunar-velvet-oxide-brisk-tango"
OTHER = "kiosk-ember-walnut-prism-yodel-crane"


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a protected key and secrets, made once: each sealing takes a second on purpose."""
    folder = tmp_path_factory.mktemp("protected")
    store = AgeStore(folder / "lab.age", folder / "age.key")
    store.prepare()
    store.set_many({"redis.password.monitoring": "hunter2"})
    shutil.copy(folder / "age.key", folder / "plain.key")
    store.protect(PASSPHRASE)
    return folder


@pytest.fixture
def folder(protected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in a process that asked for nothing yet and has no terminal."""
    folder = tmp_path / "secrets"
    shutil.copytree(protected, folder)
    monkeypatch.setenv("MINIPC_LAB_SECRETS_DIR", str(folder))
    monkeypatch.setattr(key_file, "_opened", {})
    for variable in (key_file.FILE_VARIABLE, key_file.DESCRIPTOR_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    asked: list[str] = []

    def ask(question: str, next_step: str) -> str:
        asked.append(question)
        raise SecretError(f"cannot ask for the {question}: there is no terminal", next_step)

    monkeypatch.setattr(key_file, "ask_on_terminal", ask)
    return folder


@pytest.fixture
def store(folder: Path) -> AgeStore:
    return AgeStore(folder / "lab.age", folder / "age.key")


@pytest.fixture
def passphrase_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "passphrase"
        file.write_text(f"{text}\n")
        file.chmod(0o600)
        return file

    return write


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(secrets, [*arguments, "--inventory", "lab"], input=stdin)


def test_a_run_asks_once(store: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(question: str, _: str) -> str:
        asked.append(question)
        return PASSPHRASE

    monkeypatch.setattr(key_file, "ask_on_terminal", ask)
    assert store.get("redis.password.monitoring").reveal() == "hunter2"
    store.set_many({"redis.password.monitoring": "other"})
    assert AgeStore(store.path, store.key_path).get("redis.password.monitoring").reveal() == "other"
    assert asked == [f"passphrase of the age key {store.key_path}"]
    assert b"AGE-SECRET-KEY" not in store.key_path.read_bytes()


def test_without_a_terminal_the_error_says_what_to_do(store: AgeStore) -> None:
    with pytest.raises(SecretError, match="there is no terminal") as caught:
        store.names()
    for variable in (key_file.FILE_VARIABLE, key_file.DESCRIPTOR_VARIABLE):
        assert variable in caught.value.next_step


def test_the_terminal_is_asked_even_if_standard_input_is_a_pipe_and_nothing_is_echoed(folder: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "MINIPC_LAB_SECRETS_DIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "minipc.cli.main", "secrets", "set", "redis.password.monitoring", "--inventory", "lab"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        pass_fds=[slave],
    )
    shown = b""
    try:
        while b"passphrase of the age key" not in shown:
            shown += os.read(master, 1000)
        os.write(master, f"{PASSPHRASE}\n".encode())
        out, err = process.communicate(b"changed\n", timeout=60)
    finally:
        process.kill()
        process.wait()
    os.close(slave)
    assert process.returncode == 0, err
    assert b"stored redis.password.monitoring" in out
    os.set_blocking(master, False)
    with pytest.raises(OSError):  # noqa: PT012, PT011 - EIO at the end of a terminal
        while True:
            shown += os.read(master, 1000)
    os.close(master)
    assert PASSPHRASE.encode() not in shown + out + err


def test_no_controlling_terminal_is_a_clear_error(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minipc.cli.main", "secrets", "list", "--inventory", "lab"],
        cwd=ROOT,
        env={**os.environ, "MINIPC_LAB_SECRETS_DIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "there is no terminal" in done.stderr
    assert key_file.FILE_VARIABLE in done.stderr


def test_a_wrong_passphrase_is_a_clear_error(
    store: AgeStore, passphrase_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key_file.FILE_VARIABLE, str(passphrase_file(OTHER)))
    with pytest.raises(SecretError, match=r"the age key .*: the passphrase is wrong") as caught:
        store.names()
    assert_silent(caught.value, OTHER)
    assert "minipc bundle open" in caught.value.next_step


def test_a_passphrase_for_a_key_that_is_not_there_names_the_command_that_makes_it(store: AgeStore) -> None:
    store.key_path.unlink()
    done = run("passphrase", stdin=f"{OTHER}\n")
    assert isinstance(done.exception, SecretError)
    assert "minipc secrets init" in done.exception.next_step
    assert not store.key_path.exists()


def test_a_passphrase_file_that_others_may_read_is_refused(
    store: AgeStore, passphrase_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = passphrase_file(PASSPHRASE)
    file.chmod(0o640)
    monkeypatch.setenv(key_file.FILE_VARIABLE, str(file))
    with pytest.raises(SecretError, match="accessible to others"):
        store.names()


@pytest.mark.parametrize("number", ["x", "-1", "999"])
def test_a_descriptor_that_is_none(number: str, store: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(key_file.DESCRIPTOR_VARIABLE, number)
    with pytest.raises(SecretError, match=r"not a number|cannot be read"):
        store.names()


def test_a_program_of_ours_opens_the_key_without_asking(
    store: AgeStore, passphrase_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key_file.FILE_VARIABLE, str(passphrase_file(PASSPHRASE)))
    script = (
        "from minipc.secrets import load; "
        "print(load('lab', ['redis.password.monitoring'])['redis.password.monitoring'].reveal())"
    )
    with key_file.handed_on(LAB) as (variables, descriptors):
        assert PASSPHRASE not in str(variables)
        environment = {name: value for name, value in os.environ.items() if name != key_file.FILE_VARIABLE}
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment | variables,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout == "hunter2\n", done.stderr


def test_a_key_without_a_passphrase_hands_nothing_on(folder: Path) -> None:
    shutil.copy(folder / "plain.key", folder / "age.key")
    with key_file.handed_on(LAB) as given:
        assert given == ({}, ())


def test_the_command_protects_and_removes(
    store: AgeStore, passphrase_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_seal(monkeypatch)
    plain = (store.key_path.parent / "plain.key").read_bytes()
    store.key_path.write_bytes(plain)
    assert "has no passphrase" in run("passphrase", "--remove").output
    done = run("passphrase", stdin=f"{OTHER}\n")
    assert done.exit_code == 0, done.output
    assert "is protected by a passphrase" in done.output
    assert OTHER not in done.output
    assert store.key_path.stat().st_mode & 0o777 == 0o600
    assert key_file.is_protected(store.key_path)
    assert run("list").exit_code == 0, "the same process knows it"
    done = run("passphrase", "--remove")
    assert done.exit_code == 0, done.output
    assert store.key_path.read_bytes() == plain


@pytest.mark.parametrize("weak", ["passwordpassword1234", "correct horse battery staple", "qwertz"])
def test_a_passphrase_that_can_be_guessed_changes_nothing(weak: str, store: AgeStore) -> None:
    shutil.copy(store.key_path.parent / "plain.key", store.key_path)
    before = store.key_path.read_bytes()
    done = run("passphrase", stdin=f"{weak}\n")
    assert isinstance(done.exception, SecretError)
    assert "can be guessed" in done.exception.what
    assert_silent(done.exception, weak)
    assert store.key_path.read_bytes() == before


def test_the_present_passphrase_is_needed_to_remove_it(
    store: AgeStore, passphrase_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.key_path.read_bytes()
    monkeypatch.setenv(key_file.FILE_VARIABLE, str(passphrase_file(OTHER)))
    assert isinstance(run("passphrase", "--remove").exception, SecretError)
    assert store.key_path.read_bytes() == before


@pytest.mark.parametrize("at", ["write", "flush", "read again", "rename", "interrupt"])
def test_an_interruption_leaves_the_old_key_and_nothing_else(
    at: str, store: AgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(store.key_path.parent / "plain.key", store.key_path)
    before, listed = store.key_path.read_bytes(), sorted(store.key_path.parent.iterdir())
    monkeypatch.setattr(key_file, "seal", lambda content, _: b"sealed" + content)
    monkeypatch.setattr(key_file, "open_sealed", lambda content, _: content.removeprefix(b"sealed"))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt if at == "interrupt" else OSError(28, "No space left on device")

    match at:
        case "write":
            monkeypatch.setattr(files.os, "fchmod", fail)
        case "flush" | "interrupt":
            monkeypatch.setattr(files.os, "fsync", fail)
        case "read again":
            monkeypatch.setattr(key_file, "open_sealed", lambda *_: b"another content")
        case "rename":
            monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((SecretError, KeyboardInterrupt)):
        store.protect(PASSPHRASE)
    assert store.key_path.read_bytes() == before
    assert sorted(store.key_path.parent.iterdir()) == listed


def test_a_new_key_keeps_the_passphrase(store: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_seal(monkeypatch)
    shutil.copy(store.key_path.parent / "plain.key", store.key_path)
    store.protect(PASSPHRASE)
    old = store.key_path.read_bytes()
    store.rekey()
    assert store.get("redis.password.monitoring").reveal() == "hunter2"
    assert key_file.is_protected(store.key_path)
    store.key_path.write_bytes(old)
    with pytest.raises(SecretError, match="is not encrypted for the key"):
        store.names()


def test_the_age_tool_opens_the_secrets_with_the_protected_key(folder: Path) -> None:
    if not shutil.which("age"):
        pytest.skip("NOT EXERCISED: the program age is not installed")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["age", "--decrypt", "--identity", str(folder / "age.key"), str(folder / "lab.age")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        pass_fds=[slave],
    )
    try:
        shown = b""
        while b"passphrase" not in shown:
            shown += os.read(master, 1000)
        os.write(master, f"{PASSPHRASE}\n".encode())
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
    assert b"redis.password.monitoring: hunter2" in out, err


def test_doctor_and_audit_say_what_protects_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPC_AGE_KEY_FILE", str(folder / "age.key"))
    assert identity.protection_of(folder / "age.key") == "with a passphrase"
    assert str(doctor._age_key()).startswith("✓")
    shutil.copy(folder / "plain.key", folder / "age.key")
    assert identity.protection_of(folder / "age.key") == "without a passphrase"
    assert "`minipc secrets passphrase` sets one" in doctor._age_key().note
    (folder / "age.key").chmod(0o644)
    assert "accessible to others" in doctor._age_key().trouble
    (folder / "age.key").unlink()
    assert str(doctor._age_key()).startswith("✓"), "a key that does not exist yet is no finding"


# --- plugins ------------------------------------------------------------------------------------------------------


@pytest.fixture
def uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a plugin on PATH; returns the file in which it notes each use."""
    return plugin_on_path(tmp_path, monkeypatch)


@pytest.fixture
def with_token(tmp_path: Path, uses: Path) -> AgeStore:
    """A store whose key is in the plugin."""
    store = AgeStore(tmp_path / "token" / "production.age", tmp_path / "token" / "age.key")
    files.create_private(store.key_path, f"# slot 1\n{TOKEN}\n".encode())
    store.prepare()
    store.set_many({"redis.password.monitoring": "hunter2"})
    return store


def test_a_plugin_opens_the_secrets_and_is_asked_once(with_token: AgeStore, uses: Path) -> None:
    age._opened_by_token.clear()
    uses.unlink()
    assert with_token.get("redis.password.monitoring").reveal() == "hunter2"
    assert with_token.names() == ["redis.password.monitoring"]
    assert uses.read_text() == "identity-v1\n"
    assert identity.protection_of(with_token.key_path) == "in age-plugin-fake"


def test_a_file_key_next_to_a_plugin_is_tried_first(with_token: AgeStore, uses: Path) -> None:
    with_token.key_path.write_bytes(identity.new_identity() + with_token.key_path.read_bytes())
    with_token.set_many({"redis.password.monitoring": "for both"})
    age._opened_by_token.clear()
    uses.unlink()
    assert with_token.get("redis.password.monitoring").reveal() == "for both"
    assert not uses.exists()


def test_a_plugin_that_is_not_installed_is_named(with_token: AgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    age._opened_by_token.clear()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(SecretError, match="needs the program age-plugin-fake, which is not on PATH"):
        with_token.names()


def test_another_token_does_not_open_them(with_token: AgeStore, uses: Path) -> None:
    with_token.path.write_bytes(pyrage.encrypt(b"a.b: c\n", [pyrage.x25519.Identity.generate().to_public()]))
    with pytest.raises(SecretError, match=r"is not encrypted for the key in .*a key of age-plugin-fake"):
        with_token.names()


@pytest.mark.parametrize("text", ["AGE-PLUGIN-FAKE-1WDKX7APDXYXJ4SSX", "AGE-PLUGIN-", "AGE-PLUGIN-../X-1"])
def test_what_is_no_plugin_identity(text: str, with_token: AgeStore) -> None:
    with_token.key_path.write_text(f"{text}\n")
    with pytest.raises(SecretError, match=r"line 1 of .* is not an age identity"):
        with_token.names()
