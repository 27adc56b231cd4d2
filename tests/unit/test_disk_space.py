"""The reserve of disk space, the bound of PostgreSQL's log, and what is removed to gain space."""

from __future__ import annotations

import os
import socket

import pytest

from minipc_machine import disk_space
from minipc_machine.disk_space import MB, DiskSettings, Waiting

DAY = 86400


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A disk of 1000 MB whose free space a test sets, and the places of PostgreSQL in a folder."""
    places = {"RESERVE": "reserve", "WAL": "pg_wal", "LOG": "postgres.log"}
    for name, place in places.items():
        monkeypatch.setattr(disk_space, name, tmp_path / place)
    (tmp_path / "pg_wal/archive_status").mkdir(parents=True)
    monkeypatch.setattr(disk_space, "disk_size", lambda: 1000 * MB)
    written = {}
    monkeypatch.setattr(disk_space, "write_metrics", lambda name, gauges: written.update(read(gauges)))

    def set_free(free_mb):
        monkeypatch.setattr(disk_space, "free_space", lambda: free_mb * MB)
        return written

    return set_free


def read(gauges):
    return {gauge.name: value for gauge in gauges for _, value in gauge.samples}


@pytest.fixture
def offsite():
    """Settings for an off-site host that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield DiskSettings(["127.0.0.1", str(server.getsockname()[1])])


AWAY = DiskSettings(["127.0.0.1", "1"])


def wait_for_a_repository(tmp_path, segments, since=0.0):
    for number in range(segments):
        mark = tmp_path / f"pg_wal/archive_status/{number:024X}.ready"
        mark.touch()
        os.utime(mark, (since, since))


def test_the_reserve_is_created_where_space_is_left_and_not_otherwise(machine, tmp_path):
    machine(150)
    disk_space.watch(AWAY)
    assert not (tmp_path / "reserve").exists(), "the alert about a full disk would fire"
    metrics = machine(200)
    disk_space.watch(AWAY)
    found = (tmp_path / "reserve").stat()
    assert found.st_size == found.st_blocks * 512 == 64 * MB, "its blocks are allocated"
    assert found.st_mode & 0o777 == 0o600
    disk_space.watch(AWAY)
    assert metrics["minipc_disk_reserve_bytes"] == 64 * MB


def test_a_link_in_its_place_is_not_followed(machine, tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "reserve").symlink_to(tmp_path / "missing")
    machine(200)
    with pytest.raises(FileExistsError):
        disk_space.create(200 * MB)
    assert not (tmp_path / "missing").exists()
    assert disk_space.release() < MB
    assert not (tmp_path / "reserve").is_symlink()


def test_while_the_offsite_host_is_away_the_reserve_is_kept(machine, tmp_path, offsite):
    machine(500)
    disk_space.watch(AWAY)
    metrics = machine(0)
    wait_for_a_repository(tmp_path, 43)
    disk_space.watch(AWAY)
    assert (tmp_path / "reserve").exists(), "WAL would only take it as well"
    assert metrics["minipc_wal_waiting_bytes"] == 43 * 16 * MB
    disk_space.watch(offsite)
    assert not (tmp_path / "reserve").exists(), "archiving can go on now, but its spool needs space"
    machine(500)
    disk_space.watch(offsite)
    assert (tmp_path / "reserve").exists()


def test_a_disk_that_something_else_fills_leaves_the_reserve_to_a_person(machine, tmp_path, offsite):
    machine(500)
    disk_space.watch(offsite)
    machine(0)
    disk_space.watch(offsite)
    assert (tmp_path / "reserve").exists()
    assert disk_space.main(["release"]) == 0
    assert not (tmp_path / "reserve").exists()
    assert disk_space.main(["release"]) == 0


def test_metrics_that_a_full_disk_refuses_stop_nothing(machine, monkeypatch, tmp_path):
    def refused(name, gauges):
        raise OSError(28, "No space left on device")

    machine(500)
    monkeypatch.setattr(disk_space, "write_metrics", refused)
    disk_space.watch(AWAY)
    assert (tmp_path / "reserve").exists()


def test_how_long_the_space_lasts():
    # 43 segments in 4 h; 1720 MB are free.
    waiting = Waiting(43, since=0)
    assert waiting.days_until(free=10 * 43 * 16 * MB, now=4 * 3600) == pytest.approx(10 * 4 / 24)
    assert Waiting(1, 0).days_until(MB, 10) is None
    assert Waiting(0, 10).days_until(MB, 10) is None


def test_a_log_beyond_its_limit_is_cut_while_it_is_written(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "LOG_LIMIT", 2 * MB)
    monkeypatch.setattr(disk_space, "LOG_KEPT", MB)
    log = tmp_path / "postgres.log"
    metrics = machine(0)
    with open(log, "ab") as postgres:
        postgres.write(b"a" * 2 * MB)
        postgres.flush()
        disk_space.watch(AWAY)
        assert log.stat().st_size == 2 * MB
        postgres.write(b"b" * MB)
        postgres.flush()
        disk_space.watch(AWAY)
        postgres.write(b"next")
    assert log.read_bytes() == b"next"
    assert (tmp_path / "postgres.log.cut").read_bytes() == b"b" * MB
    assert metrics["minipc_postgres_log_cut_timestamp_seconds"] > 0


def test_a_link_in_the_place_of_the_log_is_not_cut(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "LOG_LIMIT", 10)
    precious = tmp_path / "precious"
    precious.write_text("x" * 100)
    (tmp_path / "postgres.log").symlink_to(precious)
    assert disk_space.cut_log(tmp_path / "postgres.log") == 0
    (tmp_path / "postgres.log").unlink()
    os.link(precious, tmp_path / "postgres.log")
    assert disk_space.cut_log(tmp_path / "postgres.log") == 0
    assert len(precious.read_text()) == 100


def full(stop):
    return {"type": "full", "timestamp": {"stop": stop}}


def run_gain(monkeypatch, backups, *options):
    ran = []
    monkeypatch.setattr(disk_space.shutil, "which", lambda name: name)
    monkeypatch.setattr(disk_space, "run", lambda argv, limit: ran.append(argv[0]))
    monkeypatch.setattr(disk_space, "pgbackrest", lambda *arguments: ran.append(" ".join(arguments)))
    monkeypatch.setattr(disk_space, "repository", lambda stanza, repo: {"backup": backups})
    assert disk_space.main(["gain", *options]) == 0
    return ran


def test_space_is_gained_in_order_and_each_step_says_what_is_promised_less(machine, monkeypatch, capsys, tmp_path):
    machine(100)
    wait_for_a_repository(tmp_path, 10, since=disk_space.time.time() - DAY)
    backups = [full(0), {"type": "diff", "timestamp": {"stop": DAY}}, full(7 * DAY)]
    assert run_gain(monkeypatch, backups, "--dry-run") == []
    said = capsys.readouterr().out
    assert "would remove: 1 older full backups in the local repository" in said
    assert "restores moments after 1970-01-08 00:00 UTC;" in said
    assert "160 MB of WAL wait for a repository; at this rate the free space lasts 0.6 days" in said
    ran = run_gain(monkeypatch, backups)
    assert ran[:2] == ["apt-get", "journalctl"]
    assert ran[2].endswith("--repo1-retention-full-type=count --repo1-retention-full=1 expire")
    assert "--repo=1 " in ran[2], "the off-site repository is never touched"


def test_the_only_full_backup_is_kept(machine, monkeypatch, capsys):
    machine(100)
    assert run_gain(monkeypatch, [full(0)]) == ["apt-get", "journalctl"]
    assert "kept: the local repository has one full backup" in capsys.readouterr().out
