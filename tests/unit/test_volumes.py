"""Volumes: what is backed up, and what a comparison finds. Services choose names and content of their files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import subprocess
import tarfile
from contextlib import closing, contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from minipc_machine import copy_sqlite, restore_volumes, schema, volume_backup, volume_drill, volume_files
from minipc_machine.processes import CommandError
from minipc_machine.program import FailedError
from minipc_machine.repositories import Snapshot, Summary
from minipc_machine.volume_files import FileEntry, Found, Manifest, Volume

HOSTILE = ["-rf", "new\nline", "*.db [x] $(id)", "\udcff\udcfe", "sub/deep/file"]


@pytest.fixture
def volume(monkeypatch, tmp_path):
    """A volume with files, links and a pipe."""
    monkeypatch.setattr(volume_files, "VOLUMES", tmp_path / "volumes")
    monkeypatch.setattr(volume_files, "STAGING", tmp_path / "staging")
    monkeypatch.setattr(volume_files, "TICK_S", 0)
    (tmp_path / "secret").write_text("of the machine")
    found = Volume("odd", "uploads", os.getuid(), 2**30, ["*.sqlite3"], "must recover")
    found.path.mkdir(parents=True)
    for name in HOSTILE:
        path = found.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, errors="surrogateescape")
    (found.path / "link").symlink_to(tmp_path / "secret")
    (found.path / "folder").symlink_to(tmp_path)
    os.mkfifo(found.path / "pipe")
    return found


def manifest_of(volume):
    at_ns, files = volume_files.listing(volume)
    return Manifest(volume.service, volume.name, at_ns, files)


def compared(volume, manifest):
    return volume_files.compare(volume, manifest, volume_files.scan(volume.path), "snap")


def test_only_regular_files_are_listed_and_no_link_is_followed(volume):
    manifest = manifest_of(volume)
    assert sorted(each.path for each in manifest.files) == sorted(HOSTILE)
    # Whatever a name is, the manifest is valid JSON and means the same when it is read.
    assert volume_files.loads_manifest(schema.dump(manifest), volume) == manifest


def test_a_manifest_of_another_volume_is_refused(volume):
    other = replace(manifest_of(volume), volume="other")
    with pytest.raises(FailedError, match="the manifest is of odd/other, not of odd/uploads"):
        volume_files.loads_manifest(schema.dump(other), volume)


def test_what_came_back_unchanged_is_counted(volume):
    result = compared(volume, manifest_of(volume))
    assert (result.files, result.found, result.changed, result.problem) == (5, 5, 0, "")


def test_other_content_with_the_same_time_is_damage(volume):
    manifest = manifest_of(volume)
    path = volume.path / "new\nline"
    about = path.stat()
    path.write_text("damaged!")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    result = compared(volume, manifest)
    assert (result.found, result.problem) == (4, "new?line has other content")


def test_a_file_that_changed_during_the_backup_is_no_damage(volume):
    manifest = manifest_of(volume)
    (volume.path / "-rf").write_text("written later")
    os.utime(volume.path / "-rf", (2_000_000_000, 2_000_000_000))
    result = compared(volume, manifest)
    assert (result.found, result.changed, result.problem) == (4, 1, "")


def test_a_missing_file_is_damage_unless_its_folder_changed_later(volume):
    manifest = manifest_of(volume)
    (volume.path / "sub/deep/file").unlink()
    os.utime(volume.path / "sub/deep", (1, 1))
    assert compared(volume, manifest).problem == "sub/deep/file is missing"
    os.utime(volume.path / "sub/deep", (2_000_000_000, 2_000_000_000))
    assert compared(volume, manifest).problem == ""


def test_many_problems_are_not_all_told():
    assert volume_files.problem([f"{n} is missing" for n in range(9)]).endswith("4 is missing and 4 more")


# --- SQLite ---------------------------------------------------------------------------------------------------------


def database(path):
    with closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode = wal")
        made.execute("CREATE TABLE t (x)")
        made.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
        made.commit()


def rows(path):
    with closing(sqlite3.connect(path)) as found:
        return found.execute("SELECT count(*) FROM t").fetchone()[0]


def test_a_copy_has_what_is_only_in_the_log(tmp_path):
    source, copy = tmp_path / "a ?#%.sqlite3", tmp_path / "copy"
    database(source)
    with closing(sqlite3.connect(source)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("INSERT INTO t VALUES (1)")
        writer.commit()
        assert copy_sqlite.main([str(source), str(copy)]) == 0
    assert rows(copy) == 101


def test_what_is_no_database_is_told(tmp_path):
    (tmp_path / "x").write_text("no database" * 100)
    with pytest.raises(FailedError, match="file is not a database"):
        copy_sqlite.main([str(tmp_path / "x"), str(tmp_path / "copy")])


@pytest.fixture
def backed_up(monkeypatch, volume):
    """`back_up` with restic that keeps what it would store, and copies made by this process."""
    database(volume.path / "sub/app.sqlite3")
    (volume.path / "sub/app.sqlite3-wal").write_text("left over")

    def run(argv, *_):
        assert argv[0] == "setpriv"
        assert "--no-new-privs" in argv
        assert f"--reuid={volume.user}" in argv
        copy_sqlite.main(argv[-2:])

    stored = {}

    def snapshot(config, which):
        stored["manifest"] = (which.staging / "manifest.json").read_bytes()
        stored["copies"] = {path.name: path.read_bytes() for path in (which.staging / "sqlite").glob("*")}
        return Summary("snap" * 16, 1)

    monkeypatch.setattr(volume_backup, "run", run)
    monkeypatch.setattr(volume_backup, "_snapshot", snapshot)
    return stored


def test_a_database_is_in_the_backup_as_a_copy(volume, backed_up):
    assert volume_backup.back_up(None, volume).snapshot_id.startswith("snap")
    manifest = volume_files.loads_manifest(backed_up["manifest"], volume)
    (entry,) = manifest.sqlite
    assert (entry.path, list(backed_up["copies"])) == ("sub/app.sqlite3", [entry.copy])
    assert not [each.path for each in manifest.files if "app.sqlite3" in each.path], (
        "neither it nor its log is compared"
    )
    assert not (volume.staging / "sqlite").exists(), "the copies need space only while they are stored"


def test_a_database_that_cannot_be_copied_costs_no_snapshot(volume, backed_up):
    (volume.path / "bad.sqlite3").write_text("no database" * 100)
    with pytest.raises(FailedError, match=r"snapshot snapsnap was taken, but .*not a database"):
        volume_backup.back_up(None, volume)
    assert len(volume_files.loads_manifest(backed_up["manifest"], volume).sqlite) == 1


def test_a_link_that_looks_like_a_database_is_not_opened(volume):
    (volume.path / "evil.sqlite3").symlink_to("/etc/passwd")
    assert "evil.sqlite3" not in [each.path for each in manifest_of(volume).files]


@pytest.mark.parametrize(("code", "tries"), [(3, 2), (1, 1)])
def test_a_file_that_vanished_meanwhile_is_a_reason_to_try_again(monkeypatch, volume, code, tries):
    asked = []

    def restic(config, *arguments):
        asked.append(arguments)
        raise CommandError("restic backup ended", code)

    monkeypatch.setattr(volume_backup, "restic", restic)
    monkeypatch.setattr(volume_backup, "parent", lambda *_: ["--force"])
    with pytest.raises(CommandError):
        volume_backup._snapshot(SimpleNamespace(host="h"), volume)
    assert len(asked) == tries
    assert asked[0][-2:] == (str(volume.path), str(volume.staging))


# --- restore --------------------------------------------------------------------------------------------------------


def entry_of(path, copy="0.sqlite"):
    content = b"restored"
    return FileEntry(path, len(content), hashlib.sha256(content).hexdigest(), 1_000_000_000, 0o644, copy)


@pytest.fixture
def restored(volume, tmp_path):
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "0.sqlite").write_bytes(b"restored")
    return lambda path: restore_volumes._put(volume, entry_of(path), volume.path, copies)


def test_a_copy_takes_the_place_of_the_file_and_its_logs(volume, restored):
    for ending in ("", "-wal", "-shm", "-journal"):
        (volume.path / f"sub/app.sqlite3{ending}").write_text("torn")
    assert restored("sub/app.sqlite3")
    assert [path.name for path in sorted((volume.path / "sub").glob("app*"))] == ["app.sqlite3"]
    assert (volume.path / "sub/app.sqlite3").read_bytes() == b"restored"


@pytest.mark.parametrize("path", ["folder/secret", "../secret", "/etc/passwd", "sub/../../secret"])
def test_nothing_is_written_outside_the_volume(volume, restored, tmp_path, path):
    """`folder` was a folder when the manifest was made, and a link when the snapshot was taken."""
    with pytest.raises(OSError, match=r"not one in the volume|Not a directory|symbolic links|Too many levels"):
        restored(path)
    assert (tmp_path / "secret").read_text() == "of the machine"


def test_a_link_in_the_place_of_a_database_is_replaced_and_not_followed(volume, restored, tmp_path):
    assert restored("link")
    assert (tmp_path / "secret").read_text() == "of the machine"
    assert not (volume.path / "link").is_symlink()


@pytest.fixture
def repository(monkeypatch, volume, tmp_path):
    """A repository with one snapshot of the volume; a test may change what it delivers."""
    source = tmp_path / "stored"
    volume.path.rename(source)
    (source / "sub/app.sqlite3").write_text("torn")
    manifest = manifest_of(replace_path(volume, source))
    kept = [each for each in manifest.files if not each.path.endswith(".sqlite3")]
    manifest = replace(manifest, volume="uploads", files=kept, sqlite=[entry_of("sub/app.sqlite3")])

    def restic(config, *arguments):
        assert arguments[0] == "restore"
        target = arguments[-1]
        if str(volume.staging) in arguments[1]:
            os.mkdir(f"{target}/sqlite")
            (volume_files.Path(target) / "manifest.json").write_text(schema.dump(manifest))
            (volume_files.Path(target) / "sqlite/0.sqlite").write_bytes(b"restored")
        else:
            subprocess.run(["cp", "-a", f"{source}/.", f"{target}/"], check=True)

    snapshot = Snapshot("a" * 64, "aaaa", "2026-11-30T01:00:00Z", [str(volume.path)])
    monkeypatch.setattr(restore_volumes, "restic", restic)
    monkeypatch.setattr(restore_volumes, "snapshots", lambda *_: [snapshot])
    monkeypatch.setattr(restore_volumes, "DONE", tmp_path / "volumes.json")
    monkeypatch.setattr(restore_volumes, "settings", lambda: SimpleNamespace(volumes=[volume]))
    return source


def replace_path(volume, source):
    """The same volume at another place, for a listing."""
    return SimpleNamespace(**vars(volume), path=source)


def test_a_volume_comes_back_in_one_step(volume, repository, tmp_path):
    assert restore_volumes.main([]) == 0
    assert (volume.path / "sub/app.sqlite3").read_bytes() == b"restored"
    assert (volume.path / "folder").is_symlink()
    told = json.loads((tmp_path / "volumes.json").read_text())["odd/uploads"]
    assert (told["files"], told["found"], told["problem"]) == (6, 6, "")
    assert not list(volume.path.parent.glob(".*"))
    assert oct(volume.path.stat().st_mode & 0o777) == "0o700"


def test_a_return_ignores_newer_snapshots(volume, repository, monkeypatch):
    monkeypatch.setattr(restore_volumes.backup_state, "moment", lambda: 1000.0)
    restore_volumes.main([])
    assert not volume.path.exists() or not any(volume.path.iterdir())


def test_what_an_interrupted_restore_has_left_is_no_volume(volume, repository):
    half = volume.path.with_name(".uploads.restoring")
    half.mkdir()
    (half / "half").touch()
    restore_volumes.main([])
    assert not (volume.path / "half").exists()


def test_a_volume_that_is_in_use_is_left_alone(volume, repository):
    volume.path.mkdir()
    (volume.path / "mine").touch()
    restore_volumes.main([])
    assert [path.name for path in volume.path.iterdir()] == ["mine"]


# --- drill ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_compared_from_what_restic_prints(monkeypatch, volume):
    manifest = manifest_of(volume)
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(volume.path, arcname="/")

    @contextmanager
    def output(*_):
        yield io.BytesIO(text.getvalue())

    monkeypatch.setattr(volume_drill, "restic_output", output)
    found = list(volume_drill.stored(None, "snap:/"))
    assert volume_files.compare(volume, manifest, found, "snap").found == 5
    assert {each.path for each in found if each.sha256 is None} == {"", "sub", "sub/deep"}


def test_a_volume_without_a_snapshot_fails_the_drill(monkeypatch, volume):
    monkeypatch.setattr(volume_drill, "snapshots", lambda *_: [])
    assert volume_drill.verify(None, volume).problem == "there is no snapshot of it"


def test_times_are_compared_to_the_nanosecond():
    member = tarfile.TarInfo("x")
    member.pax_headers = {"mtime": "1700000000.123456789"}
    (found,) = volume_drill._found(SimpleNamespace(extractfile=lambda _: io.BytesIO(b"")), member)
    assert found == Found("x", 1700000000123456789, 0, found.sha256)
