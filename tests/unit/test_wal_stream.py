"""WAL that is sent off-site as it is written, and what a restore does with it."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from minipc_machine import backup_state, restore, schema, sftp, wal_files, wal_stream
from minipc_machine.program import FailedError
from minipc_machine.sftp import Server
from minipc_machine.wal_files import SEGMENT_BYTES, Keys, name_of
from minipc_machine.wal_stream import Sender
from tests.unit.test_backup_programs import CONFIG, archive, backup_of, left_at, place, segments

__all__ = ["archive", "place"]

SYSTEM = "7300000000000000001"
SERVER = Server("minipc-sftp", "192.0.2.1", 2222, "/wal")
ONE, TWO, THREE = segments(1, 3)


class Offsite:
    """The folder on the off-site host, with the commands of `sftp` that the programs use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost = False
        folder.mkdir()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, *commands):
        if self.lost:
            raise FailedError("sftp to the off-site host ended with 255: Connection closed")
        for verb, *words in (command.split() for command in commands):
            paths = [word for word in words if not word.startswith("-")]
            if verb == "put":
                content, target = Path(paths[0]).read_bytes(), self.folder / paths[1]
                if "-a" in words:
                    content = target.read_bytes() + content[target.stat().st_size :]
                target.write_bytes(content)
            elif verb == "-get":
                shutil.copy(self.folder / paths[0], paths[1])
            elif verb == "-rm":
                (self.folder / paths[0]).unlink(missing_ok=True)
            else:
                raise AssertionError(verb)
        return []

    def names(self):
        return [path.name for path in self.folder.iterdir()]


@pytest.fixture
def openssl(monkeypatch):
    """Every ciphertext is its plain text backwards: the programs are tested, not OpenSSL."""
    monkeypatch.setattr(Keys, "_openssl", lambda self, data, direction: data[::-1])


@pytest.fixture
def keys(monkeypatch, tmp_path, openssl):
    conf = tmp_path / "pgbackrest.conf"
    conf.write_text("[global]\nrepo2-cipher-pass=secret\n[main]\npg1-path=/x\n")
    monkeypatch.setattr(wal_files, "PGBACKREST", conf)
    return wal_files.keys(SYSTEM)


@pytest.fixture
def offsite(monkeypatch, tmp_path):
    found = Offsite(tmp_path / "offsite")
    monkeypatch.setattr(wal_files, "Sftp", lambda _: found)
    monkeypatch.setattr(shutil, "chown", lambda *_: None)
    return found


class Mini:
    """A machine whose server has written WAL; a segment is archived when the test says so."""

    def __init__(self, folder: Path, keys: Keys, offsite: Offsite) -> None:
        self.folder, self.keys, self.offsite = folder, keys, offsite
        self.written = SEGMENT_BYTES
        self.sessions = 0
        (folder / "archive_status").mkdir(parents=True)

    def write(self, length: int, timeline: int = 1) -> None:
        """Append WAL; each byte depends on its position."""
        for number in range(self.written // SEGMENT_BYTES, (self.written + length) // SEGMENT_BYTES + 1):
            path = self.folder / name_of(timeline, number)
            if not path.exists():
                path.write_bytes(bytes([number % 256, timeline]) * (SEGMENT_BYTES // 2))
        before, self.written = self.written // SEGMENT_BYTES, self.written + length
        for number in range(before, self.written // SEGMENT_BYTES):
            (self.folder / f"archive_status/{name_of(timeline, number)}.ready").touch()

    def archive(self, segment: str) -> None:
        """Do what pgBackRest and PostgreSQL do when a segment has arrived in every repository."""
        (self.folder / f"archive_status/{segment}.ready").rename(self.folder / f"archive_status/{segment}.done")

    def connect(self, timeline: int = 1) -> Sender:
        """Begin to send."""
        self.sessions += 1
        return Sender(self.offsite, self.keys, timeline, f"{self.sessions:016x}")

    def fetched(self, folder: Path) -> dict[str, int]:
        """Return what a restore finds; it must be what was written."""
        found = wal_files.fetch(SERVER, self.keys, folder)
        for name, length in found.items():
            content = (folder / name).read_bytes()
            assert len(content) == SEGMENT_BYTES
            assert content[:length] == (self.folder / name).read_bytes()[:length]
            assert not any(content[length:])
        return found


@pytest.fixture
def mini(monkeypatch, tmp_path, keys, offsite):
    monkeypatch.setattr(wal_stream, "WAL", tmp_path / "pg_wal")
    monkeypatch.setattr(wal_stream, "RUNTIME", tmp_path / "run")
    (tmp_path / "run").mkdir()
    return Mini(tmp_path / "pg_wal", keys, offsite)


def test_what_was_written_is_received_and_what_is_archived_is_removed(mini, offsite, tmp_path):
    sender = mini.connect()
    for length in (1000, 1, 5 * 1024**2):
        mini.write(length)
        assert sender.advance(mini.written)
    assert mini.fetched(tmp_path / "got") == {ONE: 5 * 1024**2 + 1001}
    assert offsite.names() == [f"{ONE}.0000000000000001"]
    mini.write(2 * SEGMENT_BYTES)
    assert sender.advance(mini.written)
    assert mini.fetched(tmp_path / "got") == {
        ONE: SEGMENT_BYTES,
        TWO: SEGMENT_BYTES,
        THREE: 5 * 1024**2 + 1001,
    }
    # The second has arrived before the first.
    mini.archive(TWO)
    assert sender.advance(mini.written)
    assert len(offsite.names()) == 3
    mini.archive(ONE)
    assert sender.advance(mini.written)
    assert offsite.names() == [f"{THREE}.0000000000000001"]
    assert [path.name for path in wal_stream.RUNTIME.iterdir()] == [THREE]


def test_after_an_outage_everything_that_is_not_archived_is_sent(mini, offsite, tmp_path):
    """However long it was: PostgreSQL keeps the segments. One that was archived meanwhile is not sent."""
    sender = mini.connect()
    mini.write(100)
    assert sender.advance(mini.written)
    offsite.lost = True
    mini.write(3 * SEGMENT_BYTES)
    with pytest.raises(FailedError, match="Connection closed"):
        sender.advance(mini.written)
    offsite.lost = False
    mini.archive(ONE)
    assert mini.connect().advance(mini.written)
    assert mini.fetched(tmp_path / "got") == {TWO: SEGMENT_BYTES, THREE: SEGMENT_BYTES, name_of(1, 4): 100}
    assert {name.partition(".")[2] for name in offsite.names()} == {"0000000000000002"}


def test_an_empty_off_site_host_gets_everything_again(mini, offsite, tmp_path):
    mini.write(100)
    assert mini.connect().advance(mini.written)
    shutil.rmtree(offsite.folder)
    offsite.folder.mkdir()
    mini.write(100)
    assert mini.connect().advance(mini.written)
    assert mini.fetched(tmp_path / "got") == {ONE: 200}


def test_what_is_sent_is_bounded(mini, offsite, monkeypatch):
    monkeypatch.setattr(wal_stream, "LIMIT", 2)
    mini.write(3 * SEGMENT_BYTES)
    sender = mini.connect()
    assert not sender.advance(mini.written), "it is behind, and an alert says so"
    assert {name[:24] for name in offsite.names()} == {ONE, TWO}
    for segment in (ONE, TWO):
        mini.archive(segment)
    assert sender.advance(mini.written)
    assert {name[:24] for name in offsite.names()} == {THREE}


def test_after_a_restore_the_timeline_before_is_kept_and_earlier_ones_are_not(mini, offsite, tmp_path):
    for each in (name_of(1, 9), name_of(2, 9), name_of(3, 1)):
        (offsite.folder / f"{each}.00000000000000ff").touch()
    (offsite.folder / "something else").touch()
    mini.write(100, timeline=3)
    assert mini.connect(timeline=3).advance(mini.written)
    assert sorted(offsite.names()) == [
        f"{name_of(2, 9)}.00000000000000ff",
        f"{name_of(3, 1)}.0000000000000001",
        "something else",
    ]


@pytest.mark.parametrize("cut", [1, 40, 2000])
def test_a_torn_record_ends_the_file_and_is_no_error(mini, offsite, tmp_path, cut):
    sender = mini.connect()
    for length in (1000, 5000):
        mini.write(length)
        assert sender.advance(mini.written)
    (path,) = offsite.folder.iterdir()
    last = len(path.read_bytes()) - len(mini.keys.seal(ONE, 0, (mini.folder / ONE).read_bytes()[:1000]))
    path.write_bytes(path.read_bytes()[: -min(cut, last)])
    assert mini.fetched(tmp_path / "got") == {ONE: 1000}


def test_records_of_another_database_segment_or_place_are_not_used(mini, offsite, keys, tmp_path):
    """The off-site host can neither make WAL nor move it."""
    record = keys.seal(ONE, 0, b"a" * 100)
    (offsite.folder / f"{TWO}.0000000000000001").write_bytes(record)
    (offsite.folder / f"{ONE}.0000000000000001").write_bytes(wal_files.keys("7300000000000000002").seal(ONE, 0, b"b"))
    (offsite.folder / f"{ONE}.0000000000000002").write_bytes(keys.seal(ONE, 100, b"c"))
    (offsite.folder / f"{THREE}.0000000000000001").write_bytes(zlib.compress(b"d" * 100))
    assert mini.fetched(tmp_path / "got") == {}
    changed = bytearray(record)
    changed[-1] ^= 1
    assert keys.open(ONE, bytes(changed)) == b""
    assert keys.open(ONE, record + record) == b"a" * 100, "a repeated record is at another place"


def test_the_keys_come_from_the_passphrase_and_are_not_shown(keys):
    wal_files.PGBACKREST.write_text("[global]\nrepo2-cipher-pass=another\n")
    other = wal_files.keys(SYSTEM)
    assert len({keys.cipher, keys.mac.hex(), other.cipher, other.mac.hex()}) == 4
    assert keys.cipher not in repr(keys)
    assert keys.mac.hex() not in repr(keys)
    wal_files.PGBACKREST.write_text("[global]\n")
    with pytest.raises(FailedError, match="no repo2-cipher-pass"):
        wal_files.keys(SYSTEM)


@pytest.mark.skipif(not shutil.which("openssl"), reason="NOT EXERCISED: openssl is not installed here")
def test_openssl_encrypts_and_no_key_is_in_its_arguments(monkeypatch):
    keys, ran = Keys(SYSTEM, "ab" * 32, b"mac"), []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda argv, **options: ran.append(argv) or run(argv, **options))
    record = keys.seal(ONE, 0, b"plain text " * 100)
    assert keys.open(ONE, record) == b"plain text " * 100
    assert b"plain text" not in record
    assert len(ran) == 2
    assert keys.cipher not in str(ran)


# --- the connection -------------------------------------------------------------------------------------------------


def connection(monkeypatch, tmp_path, script):
    """A connection to a program that behaves as `sftp` does."""
    program = tmp_path / "sftp"
    program.write_text(f'#!/bin/sh\nwhile read -r command; do echo "sftp> $command"; {script}; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sftp, "AS_POSTGRES", ())
    return sftp.Sftp(SERVER)


def test_a_command_returns_what_it_printed(monkeypatch, tmp_path):
    script = 'case $command in version) echo "SFTP protocol version 3";; ls*) echo "a"; echo "../b";; esac'
    with connection(monkeypatch, tmp_path, script) as session:
        assert session.run("put x y") == []
        assert session.names() == ["a", "b"]


def test_a_command_that_fails_says_why(monkeypatch, tmp_path):
    script = (
        'case $command in version) echo "SFTP protocol version 3";; put*) echo "No space \033[2J" >&2; exit 1;; esac'
    )
    with connection(monkeypatch, tmp_path, script) as session:
        with pytest.raises(FailedError, match=r"ended with 1: No space \?\[2J"):
            session.run("put x y")
        with pytest.raises(FailedError, match="ended with 1"):
            session.run("put x y")


def test_a_folder_that_is_missing_is_an_error(monkeypatch, tmp_path):
    with (
        pytest.raises(FailedError, match="no such folder"),
        connection(monkeypatch, tmp_path, "echo no such folder >&2; exit 1"),
    ):
        pass


# --- restore --------------------------------------------------------------------------------------------------------


WHOLE, HALF = SEGMENT_BYTES, SEGMENT_BYTES // 2
LEFT_WITHIN_10 = {"00000002.history": left_at(0x10 * SEGMENT_BYTES + 0x150)}


def until(received, *, accept_gap=False, needed=4):
    archived, timeline, sent = restore._wal_until(CONFIG, backup_of(needed), received, accept_gap=accept_gap)
    return archived, timeline, sent.segments


def test_what_was_received_continues_the_archive_up_to_the_unfinished_segment(archive, capsys):
    archive(repo1=[], repo2=segments(4, 6))
    five, _, seven, eight, nine, ten = segments(5, 10)
    received = {five: WHOLE, seven: WHOLE, eight: HALF, nine: WHOLE, ten: HALF}
    assert until(received) == (segments(6, 6)[0], 1, {seven: WHOLE, eight: HALF})
    assert "goes on until 0/8800000" in capsys.readouterr().out


def test_what_begins_after_the_archive_ends_is_not_used_and_said(archive, capsys):
    archive(repo1=[], repo2=segments(4, 6))
    (eight,) = segments(8, 8)
    assert until({eight: HALF}) == (segments(6, 6)[0], 1, {})
    assert f"NOT USED: it begins with {eight}" in capsys.readouterr().out
    assert until({}) == (segments(6, 6)[0], 1, {})
    assert capsys.readouterr().out == ""


def test_a_gap_that_was_received_is_filled_and_else_refused(archive):
    archive(repo1=[], repo2=[*segments(4, 5), *segments(7, 8)])
    (six,) = segments(6, 6)
    (nine,) = segments(9, 9)
    assert until({six: WHOLE, nine: HALF}) == (segments(8, 8)[0], 1, {six: WHOLE, nine: HALF})
    with pytest.raises(FailedError, match="000000010000000000000006 is missing"):
        until({six: HALF, nine: HALF})
    assert until({nine: HALF}, accept_gap=True) == (segments(5, 5)[0], 1, {})


def test_what_another_timeline_has_left_is_not_used(archive):
    """Neither that of a machine that was replaced, nor one whose history is in no repository."""
    held = [*segments(4, 0x10), *segments(0x10, 0x11, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=held, histories=LEFT_WITHIN_10)
    (own,) = segments(0x12, 0x12, timeline=2)
    others = {segments(0x12, 0x12)[0]: HALF, segments(0x12, 0x12, timeline=3)[0]: HALF}
    assert until({own: HALF} | others) == (segments(0x11, 0x11, timeline=2)[0], 2, {own: HALF})


def test_the_first_segment_of_a_new_timeline_counts_before_one_is_archived(archive):
    first, second = segments(0x10, 0x11, timeline=2)
    for archived in (0xF, 0x10):
        held = [*segments(4, archived), "00000002.history"]
        archive(repo1=[], repo2=held, histories=LEFT_WITHIN_10)
        received = {first: WHOLE, second: HALF}
        assert until(received) == (segments(archived, archived)[0], 2, received)
    archive(repo1=[], repo2=[*segments(4, 0xE), "00000002.history"], histories=LEFT_WITHIN_10)
    assert until({first: WHOLE}) == (segments(0xE, 0xE)[0], 2, {})


@pytest.fixture
def stream(monkeypatch, tmp_path, keys):
    """A machine that restores, and has an off-site host."""
    monkeypatch.setattr(wal_files, "SETTINGS", tmp_path / "wal-stream.json")
    wal_files.SETTINGS.write_text(schema.dump(SERVER))
    monkeypatch.setattr(restore, "RECEIVED", tmp_path / "received")
    monkeypatch.setattr(restore, "FETCH_PAUSE_S", 0)
    monkeypatch.setattr(restore, "repository", lambda *_: {"db": [{"system-id": 1}, {"system-id": int(SYSTEM)}]})


def test_if_nothing_can_be_fetched_the_restore_goes_on_and_says_so(stream, monkeypatch, capsys):
    tried = []

    def fails(*_):
        tried.append(1)
        raise FailedError("no route to host")

    monkeypatch.setattr(wal_files, "fetch", fails)
    assert restore._received(CONFIG, 2).trouble.startswith("WAL that was sent off-site is NOT USED: no route to host")
    assert "NOT USED: no route to host. The restore ends with the last archived segment" in capsys.readouterr().out
    assert len(tried) == 3
    monkeypatch.setattr(wal_files, "fetch", lambda *_: {})
    assert restore._received(CONFIG, 2) == restore.Sent({})
    assert "has received no WAL" in capsys.readouterr().out
    wal_files.SETTINGS.unlink()
    assert restore._received(CONFIG, 2) == restore.Sent({})
    assert capsys.readouterr().out == ""


def test_the_wal_of_the_database_in_the_backup_is_fetched(stream, mini, offsite, capsys):
    mini.write(1000)
    assert mini.connect().advance(mini.written)
    assert restore._received(CONFIG, 2) == restore.Sent({ONE: 1000})
    assert (restore.RECEIVED / ONE).stat().st_size == SEGMENT_BYTES


@pytest.mark.parametrize(
    ("repos", "there", "copied", "code"),
    [(0, True, True, 0), (1, True, True, 0), (1, False, True, 1), (1, True, False, 126), (103, True, True, 126)],
)
def test_the_archive_comes_first_and_a_copy_that_fails_is_not_the_end(
    monkeypatch, tmp_path, repos, there, copied, code
):
    program = tmp_path / "pgbackrest"
    program.write_text(f"#!/bin/sh\nexit {repos}\n")
    program.chmod(0o755)
    monkeypatch.setattr(restore, "RECEIVED", tmp_path / "received")
    restore.RECEIVED.mkdir()
    if there:
        (restore.RECEIVED / ONE).write_text("wal")
    target = tmp_path / ("target" if copied else "missing/target")
    command = restore._restore_command(CONFIG, [ONE]).replace("%f", ONE).replace("%p", str(target))
    assert "'" not in command, "it is quoted in PostgreSQL's settings"
    path = f"{tmp_path}:/usr/bin:/bin"
    assert subprocess.run(["sh", "-c", command], env={"PATH": path}, check=False).returncode == code
    assert target.exists() == (repos == 1 and there and copied)


def test_what_was_received_and_replayed_is_archived_before_anything_else(place, monkeypatch, capsys):
    """PostgreSQL takes a restored segment for archived: the next restore would miss it."""
    received = {segments(0xF, 0xF)[0]: WHOLE, segments(0x10, 0x10)[0]: WHOLE, segments(0x11, 0x11)[0]: HALF}
    outcome = backup_state.Restore(1, "F", 1, 1, 1, segments(0xE, 0xE)[0], received=received)
    place.OUTCOME.write_text(schema.dump(outcome))
    (place.DATA / "pg_wal").mkdir()
    (place.DATA / "pg_wal/00000002.history").write_text(left_at(0x11 * SEGMENT_BYTES + 0x150))
    monkeypatch.setattr(restore, "RECEIVED", place.DATA.parent / "received")
    restore.RECEIVED.mkdir()
    for name in received:
        (restore.RECEIVED / name).touch()
    monkeypatch.setattr(restore, "pgbackrest", lambda *words: place.asked.append(" ".join(words)))
    assert place.decide("recovered", "restore") == 0
    push = "--stanza=main --no-archive-async archive-push"
    assert place.asked[:2] == [f"{push} {restore.RECEIVED / name}" for name in segments(0xF, 0x10)]
    assert place.asked[2].startswith("systemctl restart")
    assert not restore.RECEIVED.exists()
    assert "recovery went to 0/11000150; the off-site host had received WAL until 0/11800000" in capsys.readouterr().out
