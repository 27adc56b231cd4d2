"""Making, opening and checking a bundle, on computers of their own: clone, home, keys, secrets."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minipc import config
from minipc.bundle import checking, contents, creation, opening
from minipc.bundle.state import read_state, state_file
from minipc.cli.bundle import bundle
from minipc.config.load import group_data
from minipc.core import paths
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError, SecretError
from minipc.remote.inventory import Target
from minipc.secrets import key_file, open_store, sealed
from minipc.secrets.backends import age_key_file
from playbooks import bundle_metrics
from tests.unit.age_plugin import TOKEN, plugin_on_path
from tests.unit.bundle_home import PASSPHRASE, SSH_KEY, Computer, everything, git, quick_seal, set_up
from tests.unit.secrets_leaks import assert_silent
from tests.unit.secrets_vault_server import FakeVault

OTHER_PASSPHRASE = "kiosk-ember-walnut-prism-yodel-crane"
OTHER = "velvet ladder onion trout mabel"
DSN = "https://hunter2@sentry.example.org/1"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("computer") / "template"


@pytest.fixture(scope="session")
def lab() -> config.Settings:
    return config.load("lab")


@pytest.fixture
def computer(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab: config.Settings) -> Computer:
    quick_seal(monkeypatch)
    return set_up(template, tmp_path, monkeypatch, lab)


@pytest.fixture
def made(computer: Computer) -> Computer:
    creation.create("production", computer.bundle, PASSPHRASE)
    return computer


def values_of(environment: str = "production") -> dict[str, str]:
    store = open_store(environment, backend="age")
    return {name: secret.reveal() for name, secret in store.read(store.names()).items()}


# --- making and opening --------------------------------------------------------------------------------------------


def test_everything_comes_back_on_a_blank_computer(computer: Computer) -> None:
    """Edited after the clone, never pushed: the bundle has it."""
    production = computer.clone / "group_data/production.py"
    production.write_text('vpn_endpoint = "mine.example.org"\n')
    before, before_values = everything(computer), values_of()
    creation.create("production", computer.bundle, PASSPHRASE)
    other = computer.another("two")
    opened = opening.open_bundle(computer.bundle, PASSPHRASE, other.clone)
    assert values_of() == before_values
    assert opened.secrets == len(before_values)
    after = everything(other)
    assert after == {name: content for name, content in before.items() if not name.startswith("home/.local/")}
    assert (other.home / ".ssh/id_ed25519").read_bytes() == SSH_KEY


def test_what_is_secret_is_private(made: Computer) -> None:
    other = made.another("two")
    os.umask(0)
    try:
        opening.open_bundle(made.bundle, PASSPHRASE, other.clone)
    finally:
        os.umask(0o022)
    for path in (made.bundle, age_key_file("production"), other.home / ".ssh/id_ed25519"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((other.home / ".ssh").stat().st_mode) == 0o700


def test_opening_again_changes_nothing(made: Computer) -> None:
    other = made.another("two")
    first = opening.open_bundle(made.bundle, PASSPHRASE, other.clone)
    again = opening.open_bundle(made.bundle, PASSPHRASE, other.clone)
    assert {placed.fate for placed in again.placed} == {"same"}
    assert "written" in {placed.fate for placed in first.placed}


def test_a_forgotten_passphrase_of_the_age_key_loses_nothing(computer: Computer) -> None:
    """The bundle has a passphrase of its own, and contains the key without the other one."""
    plain, values = age_key_file("production").read_bytes(), values_of()
    key_file.protect(age_key_file("production"), OTHER_PASSPHRASE)
    creation.create("production", computer.bundle, PASSPHRASE)
    assert checking.check("production").changed == []
    same = opening.open_bundle(computer.bundle, PASSPHRASE, computer.clone)
    assert {placed.fate for placed in same.placed} == {"same"}, "the protected key has the same content"
    assert key_file.is_protected(age_key_file("production"))
    other = computer.another("two")
    key_file._opened.clear()
    opening.open_bundle(computer.bundle, PASSPHRASE, other.clone)
    assert age_key_file("production").read_bytes() == plain
    assert values_of() == values


def test_a_passphrase_alone_does_not_make_a_bundle_old(made: Computer) -> None:
    key_file.protect(age_key_file("production"), OTHER_PASSPHRASE)
    assert checking.check("production").changed == []


def test_a_lost_token_loses_nothing(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of()
    plugin_on_path(computer.root, monkeypatch)
    key = age_key_file("production")
    key.write_text(f"{TOKEN}\n{key.read_text()}")
    store = open_store("production", backend="age")
    store.set_many(values)
    key.write_text(f"{TOKEN}\n")
    creation.create("production", computer.bundle, PASSPHRASE)
    assert checking.check("production").changed == []
    other = computer.another("two")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    opening.open_bundle(computer.bundle, PASSPHRASE, other.clone)
    assert values_of() == values


def test_an_opening_that_was_cut_off_goes_on(made: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    other = made.another("two")
    true_write = opening.write_private
    left = [2]

    def write(path: Path, content: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        true_write(path, content)

    monkeypatch.setattr(opening, "write_private", write)
    with pytest.raises(KeyboardInterrupt):
        opening.open_bundle(made.bundle, PASSPHRASE, other.clone)
    monkeypatch.setattr(opening, "write_private", true_write)
    opening.open_bundle(made.bundle, PASSPHRASE, other.clone)
    assert values_of()["sentry.dsn"] == DSN


def test_into_a_new_folder_and_again(made: Computer) -> None:
    other = made.another("two")
    folder = other.home / "look"
    opened = opening.open_bundle(made.bundle, PASSPHRASE, folder)
    assert opened.commit == "unknown"
    assert (folder / "inventory/production.py").read_text() == "production = []\n"
    opening.open_bundle(made.bundle, PASSPHRASE, folder)


def test_an_older_file_that_git_has_is_replaced(computer: Computer) -> None:
    """The clone is at another commit than the bundle: what git has can be restored."""
    (computer.clone / "inventory/pins.json").write_text('{"box": 1}\n')
    creation.create("production", computer.bundle, PASSPHRASE)
    other = computer.another("two")
    opening.open_bundle(computer.bundle, PASSPHRASE, other.clone)
    assert (other.clone / "inventory/pins.json").read_text() == '{"box": 1}\n'


def test_a_bundle_made_by_the_first_format_still_opens(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made at commit 66b3e41, sealed with little work and a passphrase that would be refused today."""
    monkeypatch.setattr(opening, "open_sealed", sealed.open_sealed)
    other = computer.another("two")
    opened = opening.open_bundle(
        Path(__file__).parent / "data/bundle_format_1.age", "correct horse battery staple", other.clone
    )
    assert opened.secrets == len(values_of())
    assert values_of()["sentry.dsn"] == DSN
    assert (other.home / ".ssh/id_ed25519").read_bytes() == SSH_KEY
    assert (other.clone / "inventory/pins.json").read_text() == "{}\n"


# --- nothing of value is overwritten -------------------------------------------------------------------------------


def refused(computer: Computer, *messages: str, directory: Path | None = None) -> None:
    """Refused, and not one file was written or changed."""
    before = everything(computer)
    with pytest.raises(RefusedError) as caught:
        opening.open_bundle(computer.bundle, PASSPHRASE, directory or computer.clone)
    for message in messages:
        assert message in caught.value.what
    assert everything(computer) == before


def test_work_in_the_clone_is_not_overwritten(made: Computer) -> None:
    other = made.another("two")
    (other.clone / "inventory/production.py").write_text("production = [mine]\n")
    refused(other, "1 of ", "inventory/production.py: exists with other content")


def test_an_untracked_file_is_not_overwritten(computer: Computer) -> None:
    git(computer.clone, "rm", "-q", "--cached", "inventory/pins.json")
    (computer.clone / ".gitignore").write_text("/inventory/pins.json\n/secrets/*.bak\n")
    computer.commit()
    creation.create("production", computer.bundle, PASSPHRASE)
    other = computer.another("two")
    (other.clone / "inventory/pins.json").write_text("{}  \n")
    refused(other, "inventory/pins.json")


def test_keys_are_not_overwritten_and_all_are_named(made: Computer) -> None:
    other = made.another("two")
    ssh_key = other.home / ".ssh/id_ed25519"
    for path in (age_key_file("production"), ssh_key):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    refused(other, "2 of ", str(age_key_file("production")), str(ssh_key))


def test_a_staged_change_is_not_overwritten(made: Computer) -> None:
    other = made.another("two")
    (other.clone / "artifacts.lock").write_text("# mine\n")
    git(other.clone, "add", "artifacts.lock")
    refused(other, "artifacts.lock")


def test_symbolic_links_are_not_followed(made: Computer) -> None:
    other = made.another("two")
    outside = made.root / "outside"
    outside.mkdir()
    (other.clone / "secrets/production.age").unlink()
    (other.clone / "secrets").rmdir()
    (other.clone / "secrets").symlink_to(outside)
    (other.home / ".ssh").mkdir()
    (other.home / ".ssh/id_ed25519").symlink_to(outside / "key")
    refused(other, "is outside the folder", "id_ed25519: is a symbolic link")
    assert list(outside.iterdir()) == []


def test_a_folder_with_other_things_is_no_clone(made: Computer) -> None:
    other = made.another("two")
    folder = other.home / "documents"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    refused(other, "neither a clone nor empty: it contains letter.txt", directory=folder)
    refused(other, "is not a folder", directory=folder / "letter.txt")


def test_damage_is_told_before_anything_is_written(made: Computer) -> None:
    other = made.another("two")
    whole = made.bundle.read_bytes()
    for damaged in (whole[:-20], whole[:200] + b"x" + whole[201:], b"", b"nonsense"):
        made.bundle.write_bytes(damaged)
        before = everything(other)
        with pytest.raises(SecretError):
            opening.open_bundle(made.bundle, PASSPHRASE, other.clone)
        assert everything(other) == before


def test_a_missing_file_is_told(computer: Computer) -> None:
    with pytest.raises(MinipcError, match="cannot be read: No such file"):
        opening.open_bundle(computer.bundle, PASSPHRASE, computer.clone)


# --- where a bundle may be written ---------------------------------------------------------------------------------


def test_not_into_the_repository(computer: Computer) -> None:
    for place in (computer.clone / "bundle.age", computer.clone / "docs/../inventory/bundle.age"):
        with pytest.raises(RefusedError, match="inside the repository"):
            creation.create("production", place, PASSPHRASE)


def test_not_over_something_else(computer: Computer) -> None:
    computer.bundle.write_text("holiday pictures")
    for replace in (False, True):
        with pytest.raises(RefusedError, match="exists and is not a bundle"):
            creation.create("production", computer.bundle, PASSPHRASE, replace=replace)
    assert computer.bundle.read_text() == "holiday pictures"


def test_over_an_older_bundle_only_when_told(made: Computer) -> None:
    with pytest.raises(RefusedError, match="--replace"):
        creation.create("production", made.bundle, OTHER)
    creation.create("production", made.bundle, OTHER, replace=True)
    opening.read_bundle(made.bundle, OTHER)


def test_not_where_no_folder_is(computer: Computer) -> None:
    with pytest.raises(RefusedError, match="mount the USB stick"):
        creation.create("production", computer.root / "media/stick/b.age", PASSPHRASE)


def test_a_bundle_that_could_not_be_written_leaves_the_older_one(
    made: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.bundle.read_bytes()
    noted = state_file("production").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SecretError, match="No space left"):
        creation.create("production", made.bundle, PASSPHRASE, replace=True)
    assert made.bundle.read_bytes() == before
    assert state_file("production").read_bytes() == noted
    assert [path.name for path in made.root.iterdir() if path.name.startswith(".")] == []


def test_a_bundle_that_does_not_open_again_is_not_kept(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "open_sealed", lambda sealed, passphrase: b"other")
    with pytest.raises(MinipcError, match="has another content when opened again; nothing was written"):
        creation.create("production", computer.bundle, PASSPHRASE)
    assert not computer.bundle.exists()
    assert read_state("production") is None


# --- what can't be in it -------------------------------------------------------------------------------------------


def test_a_missing_secret_stops_it_and_is_named(computer: Computer) -> None:
    store = open_store("production")
    store.path.unlink()  # type: ignore[attr-defined]
    store.prepare()
    with pytest.raises(SecretError, match=r"redis\.password\.parking"):
        creation.create("production", computer.bundle, PASSPHRASE)
    assert not computer.bundle.exists()


def test_a_missing_inventory_stops_it(computer: Computer) -> None:
    (computer.clone / "inventory/production.py").unlink()
    with pytest.raises(MinipcError, match=r"inventory/production\.py is missing"):
        creation.create("production", computer.bundle, PASSPHRASE)


def test_an_ssh_key_that_others_may_read_stops_it(computer: Computer) -> None:
    (computer.home / ".ssh/id_ed25519").chmod(0o644)
    with pytest.raises(SecretError, match="accessible to others"):
        creation.create("production", computer.bundle, PASSPHRASE)


def test_a_key_with_an_unusual_name_stops_it(computer: Computer) -> None:
    (target,) = contents.targets("production")
    key = computer.home / ".ssh" / "schlüssel\n"
    key.write_bytes(SSH_KEY)
    key.chmod(0o600)
    target.data["ssh_key"] = str(key)
    with pytest.raises(MinipcError, match=r"cannot be put into a bundle.*plain relative path"):
        creation.create("production", computer.bundle, PASSPHRASE)


def test_a_key_outside_the_home_goes_to_the_settings(computer: Computer) -> None:
    (target,) = contents.targets("production")
    key = computer.root / "keys" / "id_box"
    key.parent.mkdir()
    key.write_bytes(SSH_KEY)
    key.chmod(0o600)
    target.data["ssh_key"] = str(key)
    creation.create("production", computer.bundle, PASSPHRASE)
    other = computer.another("two")
    opening.open_bundle(computer.bundle, PASSPHRASE, other.clone)
    assert (other.home / ".config/minipc/ssh/id_box").read_bytes() == SSH_KEY


def test_an_ssh_key_in_another_form_stops_it(computer: Computer) -> None:
    (computer.home / ".ssh/id_ed25519").write_text("PuTTY-User-Key-File-3: ssh-ed25519\n")
    with pytest.raises(MinipcError, match="is not a private key") as caught:
        creation.create("production", computer.bundle, PASSPHRASE)
    assert "PuTTY" not in str(caught.value)


def test_what_would_not_open_is_not_made(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "pack", lambda payload: b"junk")
    with pytest.raises(MinipcError, match="not a complete tar"):
        creation.create("production", computer.bundle, PASSPHRASE)
    assert not computer.bundle.exists()


def test_gaps_are_told(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert creation.create("production", computer.bundle, PASSPHRASE).manifest.gaps == []
    (computer.clone / "deploys.py").write_text("x")
    git(computer.clone, "commit", "-q", "--allow-empty", "-m", "not pushed")
    (computer.home / ".ssh/id_ed25519").unlink()
    gaps = creation.create("production", computer.bundle, PASSPHRASE, replace=True).manifest.gaps
    assert any("no remote branch has it" in gap for gap in gaps)
    assert "uncommitted changes: deploys.py" in gaps
    assert f"the SSH key for box: {computer.home}/.ssh/id_ed25519 is missing" in gaps
    (target,) = contents.targets("production")
    target.data["ssh_key"] = None
    monkeypatch.setattr(contents, "targets", lambda environment: [target])
    gaps = creation.create("production", computer.bundle, PASSPHRASE, replace=True).manifest.gaps
    assert any("names no key file" in gap for gap in gaps)


def test_outside_git_it_says_so(computer: Computer) -> None:
    subprocess.run(["rm", "-r", str(computer.clone / ".git")], check=True)
    made = creation.create("production", computer.bundle, PASSPHRASE)
    assert "not a git checkout" in made.manifest.gaps[0]
    assert made.manifest.origin.commit == "unknown"


def test_credentials_in_the_remote_address_stay_out(computer: Computer) -> None:
    git(computer.clone, "remote", "set-url", "origin", "https://me:t0ken@git.example.org/box.git")
    made = creation.create("production", computer.bundle, PASSPHRASE)
    assert made.manifest.origin.remote == "https://git.example.org/box.git"


# --- Vault ---------------------------------------------------------------------------------------------------------


def test_what_vault_holds_becomes_an_age_file(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of()
    with FakeVault() as server:
        settings = config.parse(group_data("lab") | {"secrets_backend": "vault", "secrets_vault": {"url": server.url}})
        monkeypatch.setenv("VAULT_TOKEN", "root-token")
        monkeypatch.setattr(config, "load", lambda environment: settings)
        open_store("production").set_many(values)
        (computer.clone / "secrets/production.age").unlink()
        age_key_file("production").unlink()
        (computer.clone / "group_data/production.py").write_text('secrets_backend = "vault"')
        made = creation.create("production", computer.bundle, PASSPHRASE)
        assert checking.check("production").fits
        assert made.manifest.backend == "vault"
        # An unreadable Vault is no verdict.
        server.sealed = True
        with pytest.raises(CouldNotVerifyError, match="is sealed"):
            checking.check("production")
    other = computer.another("two")
    opened = opening.open_bundle(computer.bundle, PASSPHRASE, other.clone)
    assert opened.secrets == len(values)
    assert values_of() == values
    restored = (other.clone / "group_data/production.py").read_text()
    namespace: dict[str, object] = {}
    exec(compile(restored, "production.py", "exec"), namespace)
    assert namespace["secrets_backend"] == "age"
    assert 'secrets_backend = "vault"\n' in restored


# --- the lab -------------------------------------------------------------------------------------------------------


def test_the_labs_secrets_are_in_its_state(computer: Computer) -> None:
    from minipc.secrets.generate import generate

    for name in ("group_data/lab.py", "inventory/lab.py"):
        (computer.clone / name).write_text("lab = []\n")
    computer.commit()
    generate("lab")
    pinned = ("pins.json", "approved.json", "allowed_signers")
    for name in pinned:
        (paths.state_dir("lab") / name).write_text(f"{name}\n")
    values = values_of("lab")
    creation.create("lab", computer.bundle, PASSPHRASE)
    other = computer.another("two")
    opening.open_bundle(computer.bundle, PASSPHRASE, other.clone)
    assert values_of("lab") == values
    for name in pinned:
        assert (paths.state_dir("lab") / name).read_text() == f"{name}\n"


# --- checking ------------------------------------------------------------------------------------------------------


def test_a_fresh_bundle_fits(made: Computer) -> None:
    checked = checking.check("production")
    assert checked.passed
    assert checked.changed == checked.problems == checked.notes == []


def test_what_was_approved_and_who_may_sign_is_in_it(made: Computer) -> None:
    """A rebuild syncs exactly the approved commit: without it the bundle would be none."""
    for name in ("allowed_signers", "approved.json"):
        (made.clone / "inventory" / name).write_text("x\n")
    assert checking.check("production").changed == [
        "new: file inventory/allowed_signers",
        "new: file inventory/approved.json",
    ]


def test_what_changed_is_named_and_nothing_else(made: Computer) -> None:
    open_store("production").set_many({"sentry.dsn": "https://changed@sentry.example.org/2", "new.one": "x"})
    (made.clone / "inventory/pins.json").write_text('{"box": 1}\n')
    (made.clone / "artifacts.lock").unlink()
    (made.home / ".ssh/id_ed25519").write_bytes(SSH_KEY + b"\n")
    expected = [
        "changed: SSH key .ssh/id_ed25519",
        "gone: file artifacts.lock",
        "changed: file inventory/pins.json",
        "new: secret new.one",
        "changed: secret sentry.dsn",
    ]
    assert checking.check("production").changed == expected
    assert checking.check("production", made.bundle, PASSPHRASE).changed == expected


def test_encrypting_anew_is_no_change(made: Computer) -> None:
    sealed = (made.clone / "secrets/production.age").read_bytes()
    open_store("production").set_many({"sentry.dsn": DSN})
    assert (made.clone / "secrets/production.age").read_bytes() != sealed
    assert checking.check("production").fits


def test_a_new_age_key_is_a_change(made: Computer) -> None:
    path = age_key_file("production")
    path.write_bytes(b"# moved\n" + path.read_bytes())
    assert checking.check("production").changed == ["changed: age key"]


def test_an_old_bundle_is_too_old(made: Computer) -> None:
    limit = config.load("production").bundle.max_age_days
    young = checking.check("production", moment=datetime.now(UTC) + timedelta(days=limit, minutes=-1))
    old = checking.check("production", moment=datetime.now(UTC) + timedelta(days=limit, minutes=1))
    assert (young.passed, old.passed, old.fits) == (True, False, True)


def test_a_stick_that_is_not_plugged_in_is_a_note(made: Computer) -> None:
    made.bundle.rename(made.root / "away.age")
    checked = checking.check("production")
    assert checked.passed
    assert "is not available" in checked.notes[0]
    assert not checking.check("production", made.bundle).fits
    assert checking.check("production", made.root / "away.age").passed


def test_a_damaged_or_other_file_is_a_problem(made: Computer) -> None:
    made.bundle.write_bytes(made.bundle.read_bytes()[:-1])
    assert "is not the newest bundle, or is damaged" in checking.check("production").problems[0]
    with pytest.raises(SecretError, match="damaged"):
        checking.check("production", made.bundle, PASSPHRASE)


def test_no_bundle_is_no_verdict(computer: Computer) -> None:
    for passphrase in (None, PASSPHRASE):
        with pytest.raises(CouldNotVerifyError, match="no bundle of production was created"):
            checking.check("production", None, passphrase)


def test_a_bundle_of_another_environment(made: Computer) -> None:
    with pytest.raises(MinipcError, match="is a bundle of production, not of lab"):
        checking.check("lab", made.bundle, PASSPHRASE)


def test_what_is_noted_here_gives_nothing_away(made: Computer) -> None:
    noted = state_file("production").read_text()
    assert stat.S_IMODE(state_file("production").stat().st_mode) == 0o600
    for value in values_of().values():
        assert value not in noted
    first = json.loads(noted)["fingerprints"]
    creation.create("production", made.bundle, PASSPHRASE, replace=True)
    second = json.loads(state_file("production").read_text())["fingerprints"]
    assert not set(first["items"].values()) & set(second["items"].values())


def test_equal_values_of_two_secrets_do_not_show_as_equal(computer: Computer) -> None:
    open_store("production").set_many({"one.same": "value", "two.same": "value"})
    made = creation.create("production", computer.bundle, PASSPHRASE)
    items = made.manifest.fingerprints.items
    assert items["secret one.same"] != items["secret two.same"]


def test_damaged_notes_are_told(made: Computer) -> None:
    state_file("production").write_text("{}")
    with pytest.raises(MinipcError, match="is damaged"):
        checking.check("production")


# --- the command ---------------------------------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(computer: Computer) -> Run:
    return lambda *arguments, stdin=f"{PASSPHRASE}\n": CliRunner().invoke(bundle, [*map(str, arguments)], input=stdin)


def error_of(result: Result) -> MinipcError:
    assert isinstance(result.exception, MinipcError), result.output
    assert_silent(result.exception, PASSPHRASE, DSN)
    return result.exception


def test_the_whole_story(run: Run, computer: Computer) -> None:
    created = run("create", computer.bundle)
    assert created.exit_code == 0, created.output
    assert "sealed  age.key" in created.output
    assert "opened again and compared" in created.output
    assert "it still matches" in run("check").output
    assert "it still matches" in run("check", "--open").output
    other = computer.another("two")
    opened = run("open", computer.bundle)
    assert opened.exit_code == 0, opened.output
    assert f"written  {other.home}/.ssh/id_ed25519" in opened.output
    assert "secrets readable" in opened.output
    for result in (created, opened):
        for value in (PASSPHRASE, *values_of().values(), "AGE-SECRET-KEY-"):
            assert value not in result.output


def test_another_commit_is_told(run: Run, computer: Computer) -> None:
    run("create", computer.bundle)
    old = git(computer.clone, "rev-parse", "HEAD")
    git(computer.clone, "commit", "-q", "--allow-empty", "-m", "more")
    git(computer.clone, "push", "-q", "origin", "HEAD")
    computer.another("two")
    assert f"created at commit {old} of {computer.remote}; this clone is at " in run("open", computer.bundle).output


def test_what_changed_fails_the_check(run: Run, computer: Computer) -> None:
    run("create", computer.bundle)
    open_store("production").set_many({"sentry.dsn": "https://changed@sentry.example.org/2"})
    result = run("check")
    assert result.exit_code == 1
    assert "changed: secret sentry.dsn" in result.output
    assert "minipc bundle create" in result.output
    assert "changed@" not in result.output


def test_metrics(run: Run, computer: Computer, tmp_path: Path) -> None:
    file = tmp_path / "bundle.prom"
    assert error_of(run("check", "--metrics", file)).exit_code == 4
    assert 'minipc_bundle_check_success{environment="production"} 0\n' in file.read_text()
    assert "created" not in file.read_text()
    run("create", computer.bundle)
    assert run("check", "--metrics", file).exit_code == 0
    text = file.read_text()
    created = read_state("production")
    assert created
    assert (
        f'minipc_bundle_created_timestamp_seconds{{environment="production"}} {created.created.timestamp():.0f}\n'
        in text
    )
    assert 'minipc_bundle_matches{environment="production"} 1\n' in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    open_store("production").set_many({"sentry.dsn": "x"})
    printed = run("check", "--metrics", "-")
    assert printed.exit_code == 1
    assert printed.stdout.startswith("# HELP minipc_bundle_checked_timestamp_seconds ")
    assert 'minipc_bundle_matches{environment="production"} 0\n' in printed.stdout
    assert 'minipc_bundle_changed_items{environment="production"} 1\n' in printed.stdout
    assert "sentry" not in printed.stdout
    for line in text.splitlines():
        assert line.startswith(("# HELP minipc_bundle_", "# TYPE minipc_bundle_", "minipc_bundle_"))


def test_the_machine_is_told(run: Run, computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, str] = {}

    def on(target: Target, command: str, stdin: str) -> str:
        if target.alias == "dead":
            raise CouldNotVerifyError("no route to host")
        told[target.alias] = stdin
        return ""

    settings = config.load("production")
    machines = [
        Target("minipc", {"machine_identity": "1"}, settings),
        Target("dead", {"machine_identity": "2"}, settings),
        Target("blank", {"machine_identity": None}, settings),
        Target("backups", {"machine_identity": "3"}, settings, "offsite"),
    ]
    monkeypatch.setattr(bundle_metrics, "targets", lambda environment: machines)
    monkeypatch.setattr(bundle_metrics, "on", on)
    made = run("create", computer.bundle)
    assert made.exit_code == 0
    assert "dead was not told: no route to host" in made.output
    assert list(told) == ["minipc"]
    assert 'minipc_bundle_matches{environment="production"} 1\n' in told["minipc"]
    open_store("production").set_many({"sentry.dsn": "x"})
    assert run("check", "--push").exit_code == 1
    assert 'minipc_bundle_matches{environment="production"} 0\n' in told["minipc"]


def test_metrics_that_can_not_be_written(run: Run, computer: Computer, tmp_path: Path) -> None:
    run("create", computer.bundle)
    assert "cannot be written" in error_of(run("check", "--metrics", tmp_path / "nowhere/x.prom")).what


def test_the_passphrase_from_a_file(run: Run, computer: Computer, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text(f"{PASSPHRASE}\n")
    assert "accessible to others" in error_of(run("create", computer.bundle, "--passphrase-file", file)).what
    file.chmod(0o600)
    assert run("create", computer.bundle, "--passphrase-file", file, stdin="").exit_code == 0
    assert run("check", "--open", stdin=PASSPHRASE).exit_code == 0


def test_the_passphrase_from_a_descriptor(run: Run, computer: Computer) -> None:
    reader, writer = os.pipe()
    os.write(writer, PASSPHRASE.encode())
    os.close(writer)
    assert run("create", computer.bundle, "--passphrase-fd", reader, stdin="").exit_code == 0
    os.close(reader)
    assert run("check", "--open", stdin=PASSPHRASE).exit_code == 0
    assert "cannot be read" in error_of(run("check", "--open", "--passphrase-fd", 999)).what


def test_the_passphrase_is_asked_for_twice(run: Run, computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipc.secrets.passphrase._is_terminal", lambda: True)
    assert run("create", computer.bundle, stdin=f"{PASSPHRASE}\n{OTHER}\n").exit_code != 0
    result = run("create", computer.bundle, stdin=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    assert result.exit_code == 0, result.output
    assert PASSPHRASE not in result.output
    assert run("check", "--open", stdin=f"{PASSPHRASE}\n").exit_code == 0


@pytest.mark.parametrize(
    ("stdin", "said"),
    [("", "is empty"), (" \n", "is empty"), ("one\ntwo\n", "more than one line"), (b"\xff\xfe", "not UTF-8")],
)
def test_what_is_no_passphrase(run: Run, computer: Computer, stdin: str | bytes, said: str) -> None:
    assert said in error_of(run("create", computer.bundle, stdin=stdin)).what
    assert not computer.bundle.exists()


def test_a_passphrase_that_can_be_guessed_is_refused(
    run: Run, computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "seal", sealed.seal)
    assert "can be guessed" in error_of(run("create", computer.bundle, stdin="passwordpassword1234\n")).what
    assert not computer.bundle.exists()


def test_a_passphrase_on_the_command_line_is_no_way_in(run: Run, computer: Computer) -> None:
    assert run("create", computer.bundle, PASSPHRASE).exit_code == 2
    assert run("create", computer.bundle, "--passphrase", PASSPHRASE).exit_code == 2
    assert not computer.bundle.exists()


def test_a_bad_place_is_told_before_the_passphrase_is_asked_for(run: Run, computer: Computer) -> None:
    assert isinstance(error_of(run("create", computer.clone / "b.age", stdin="")), RefusedError)


def test_a_wrong_passphrase(run: Run, computer: Computer) -> None:
    run("create", computer.bundle)
    other = computer.another("two")
    before = everything(other)
    assert "passphrase is wrong" in error_of(run("open", computer.bundle, stdin=OTHER)).what
    assert everything(other) == before
