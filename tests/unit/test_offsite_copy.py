"""The copies of the off-site repository: what is noticed, for how long, and what goes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minipc.core.paths import ROOT
from minipc_machine import clock, metrics, offsite_copy
from minipc_machine.processes import CommandError
from minipc_machine.program import FailedError

DAY = 86400
RETENTION = 30
SEGMENT = "archive/main/17-1/0000000100000000/0000000100000000000000{:02X}-{}.zst"


def label(age_days):
    return time.strftime("%Y%m%d-%H%M%SF", time.gmtime(time.time() - age_days * DAY))


class Place:
    """An off-site machine's disk: the repository, the copies, what is remembered."""

    def __init__(self, module, root):
        self.module, self.root = module, root
        self.repository, self.copies = module.REPOSITORY, module.COPIES
        self.free = 0

    def write(self, path, age_days=0.0, text="x"):
        file = self.repository / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        at = time.time() - age_days * DAY
        os.utime(file, (at, at))

    def backup(self, age_days, name=None):
        """A backup and the WAL of the day after it."""
        name = name or label(age_days)
        for file in ("pg_data/1.zst", "backup.manifest.copy", "backup.manifest"):
            self.write(f"backup/main/{name}/{file}", age_days)
        for kind in ("archive", "backup"):
            self.write(f"{kind}/main/{kind}.info", text=name)
            self.write(f"{kind}/main/{kind}.info.copy", text=name)
        self.segment(int(100 - age_days), age_days - 0.5)
        return name

    def segment(self, number, age_days=0.0):
        self.write(SEGMENT.format(number, "a" * 40), age_days)

    def expire(self, name, *numbers):
        """As pgBackRest does it."""
        shutil.rmtree(self.repository / "backup/main" / name)
        for number in numbers:
            (self.repository / SEGMENT.format(number, "a" * 40)).unlink()

    def run(self, *arguments):
        try:
            return self.module.main(list(arguments) or ["30", str(RETENTION), str(self.free)])
        except FailedError as error:
            print(error, file=sys.stderr)
            return error.code

    def names(self, suffix="Z"):
        return sorted(path.name for path in self.copies.glob(f"2*{suffix}"))

    def age(self, name, days):
        """A copy is renamed as if it was older."""
        older = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime(time.time() - days * DAY))
        (self.copies / name).rename(self.copies / older)
        return older

    def status(self):
        """What the metrics say: when a copy last succeeded, and what is wrong."""
        at, trouble = (self.root / "minipc_offsite_copy.prom").read_text().splitlines()[2::3]
        return {"at": float(at.split()[-1]), "trouble": re.search(r'reason="(.*)"', trouble)[1]}


def rsync(argv, **_):
    """What is used of rsync, which the controller may not have; tests/lab has the real one."""
    if argv[0] != "rsync":
        return ""
    source, target = Path(argv[-2]), Path(argv[-1])
    links = [Path(each.partition("=")[2]) for each in argv if each.startswith("--link-dest=")]
    skipped = [each.partition("=/")[2].strip("/*") for each in argv if each.startswith("--exclude=/")]
    target.mkdir(exist_ok=True)
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if name.parts[0] in skipped:
            continue
        if path.is_dir() or path.name.endswith(".pgbackrest.tmp"):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        same = (link / name for link in links if (link / name).exists() and facts(link / name) == facts(path))
        link = next(same, None)
        if link:
            os.link(link, target / name)
        else:
            shutil.copy2(path, target / name)
    return ""


def facts(path):
    return path.stat().st_size, int(path.stat().st_mtime)


@pytest.fixture
def place(tmp_path, monkeypatch):
    module = offsite_copy
    monkeypatch.setattr(clock, "CONTAINER", tmp_path)
    # The copies of these tests have no regular ages.
    monkeypatch.setattr(clock, "GAP_S", 10**9)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path / "sftp/pgbackrest")
    monkeypatch.setattr(module, "COPIES", tmp_path / "copies")
    monkeypatch.setattr(module, "RESTIC", tmp_path / "restic/minipc")
    monkeypatch.setattr(module, "RESTIC_COPIES", tmp_path / "copies/restic")
    monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(metrics, "TEXTFILES", tmp_path)
    monkeypatch.setattr(module, "PAUSE_S", 0)
    monkeypatch.setattr(module, "run", rsync)
    # Runs follow each other faster than a copy's name can tell.
    ticks = iter(range(1, 10_000))
    monkeypatch.setattr(module.time, "gmtime", lambda *at, real=time.gmtime: real(*(at or [time.time() + next(ticks)])))
    module.REPOSITORY.mkdir(parents=True)
    module.COPIES.mkdir()
    return Place(module, tmp_path)


def wipe(place):
    shutil.rmtree(place.repository)
    place.repository.mkdir()


def delete_newest(place):
    shutil.rmtree(place.repository / "backup/main" / label_of(place, -1))


def label_of(place, index):
    return sorted(path.name for path in (place.repository / "backup/main").iterdir() if path.is_dir())[index]


def delete_an_older_one(place):
    shutil.rmtree(place.repository / "backup/main" / label_of(place, 0))


def remove_archive(place):
    shutil.rmtree(place.repository / "archive")


def remove_last_segment(place):
    (place.repository / SEGMENT.format(98, "a" * 40)).unlink()


def empty_a_backup(place):
    shutil.rmtree(place.repository / "backup/main" / label_of(place, 0) / "pg_data")


def encrypt_a_backup(place):
    place.write(f"backup/main/{label_of(place, 0)}/pg_data/1.zst", text="y")


def encrypt_a_segment(place):
    place.write(SEGMENT.format(98, "a" * 40), text="y")


def remove_info(place):
    for name in ("backup.info", "backup.info.copy"):
        (place.repository / "backup/main" / name).unlink()


def hide_behind_the_future(place):
    delete_newest(place)
    place.backup(0, "29991231-235959F")


def hide_behind_a_diff_of_the_future(place):
    place.backup(0, f"{label_of(place, -1)}_29991231-235959D")


def hide_behind_a_new_one(place):
    wipe(place)
    place.backup(0)


TAMPERING = {
    wipe: "its newest backup",
    delete_newest: "its newest backup",
    delete_an_older_one: "gone, too young to expire",
    remove_archive: "WAL: 2 missing",
    remove_last_segment: "WAL: 1 missing",
    empty_a_backup: "files of backups: 1 missing",
    encrypt_a_backup: "files of backups: 1 changed",
    encrypt_a_segment: "WAL: 1 changed",
    remove_info: "'backup/main/backup.info'",
    hide_behind_the_future: "labelled in the future",
    hide_behind_a_diff_of_the_future: "labelled in the future",
    hide_behind_a_new_one: "its newest backup",
}


@pytest.fixture
def filled(place, capsys):
    """Two backups, two copies; one of the copies would expire with the next run."""
    place.backup(9)
    assert place.run() == 0
    place.age(place.names()[0], 40)
    place.backup(2)
    assert place.run() == 0
    # Removed only from now on: this one was the newest when the run began.
    assert len(place.names()) == 2
    capsys.readouterr()
    return place


def test_a_clock_that_has_jumped_removes_no_copy(filled, monkeypatch, capsys):
    monkeypatch.setattr(clock, "GAP_S", 14 * DAY)
    before = filled.names()
    assert filled.run() == 0
    assert set(before) < set(filled.names())
    assert "no copy is removed: nothing was stored between" in capsys.readouterr().out


def test_a_copy_shares_what_is_unchanged_and_expires(filled):
    first, second = (filled.copies / name for name in filled.names())
    same = f"backup/main/{label_of(filled, 0)}/backup.manifest"
    assert (first / same).stat().st_ino == (second / same).stat().st_ino
    assert (second / same).stat().st_ino != (filled.repository / same).stat().st_ino
    filled.segment(99)
    assert filled.run() == 0
    assert first.name not in filled.names()
    assert len(filled.names()) == 2
    assert filled.status()["trouble"] == ""


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__)
def test_tampering_is_told_in_every_run_and_no_copy_goes(filled, capsys, tamper):
    before, well = filled.names(), filled.status()["at"]
    tamper(filled)
    for _ in range(3):
        assert filled.run() == 1
        told = [line for line in capsys.readouterr().err.splitlines() if "THE REPOSITORY HAS LOST DATA" in line]
        assert any(TAMPERING[tamper] in line for line in told), told
        assert filled.names() == before, "no copy goes, and none that is suspect looks like one that is not"
        assert (filled.status()["at"], bool(filled.status()["trouble"])) == (well, True)


def test_an_alarm_does_not_end_by_itself(filled):
    """Not even when everything is there again: somebody must have looked."""
    saved = filled.root / "saved"
    shutil.copytree(filled.repository, saved, copy_function=shutil.copy2)
    wipe(filled)
    assert filled.run() == 1
    shutil.copytree(saved, filled.repository, copy_function=shutil.copy2, dirs_exist_ok=True)
    assert filled.run() == 1
    assert filled.run("--accept") == 0
    before = filled.names()
    assert filled.run() == 0
    assert before[0] not in filled.names(), "the old one expires now"


def test_what_was_accepted_is_compared_from_then_on(filled):
    delete_newest(filled)
    assert filled.run() == 1
    assert filled.run("--accept") == 0
    assert filled.run() == 0
    wipe(filled)
    assert filled.run() == 1


def test_the_future_can_not_be_accepted(filled, capsys):
    hide_behind_the_future(filled)
    assert filled.run() == 1
    assert filled.run("--accept") == 1
    assert "29991231-235959F" in capsys.readouterr().err
    assert filled.run() == 1


def test_what_is_written_during_an_alarm_is_copied_too(filled):
    """The alarm may be a mistake: what the machine still archives must not be in one place only."""
    delete_newest(filled)
    assert filled.run() == 1
    filled.segment(99)
    assert filled.run() == 1
    suspect = filled.copies / filled.names("Z-suspect")[-1]
    assert (suspect / SEGMENT.format(99, "a" * 40)).exists()


def test_ordinary_expiry_is_no_alarm(place):
    for age in (70, 63, 45, 31, 2):
        place.backup(age)
    assert place.run() == 0
    oldest = [label_of(place, index) for index in range(3)]
    place.expire(oldest[0], 30)
    place.expire(oldest[1], 37)
    place.expire(oldest[2], 55)
    assert place.run() == 0, place.status()
    # WAL that came before the first backup goes with it.
    place.backup(1)
    assert place.run() == 0


def test_wal_before_the_first_backup_expires(place):
    place.segment(1, 3.5)
    place.backup(3)
    assert place.run() == 0
    (place.repository / SEGMENT.format(1, "a" * 40)).unlink()
    assert place.run() == 0, place.status()


def test_what_is_being_written_is_no_part_of_it(filled):
    filled.write(f"{SEGMENT.format(99, 'a' * 40)}.pgbackrest.tmp")
    filled.write(f"backup/main/{label(0)}/pg_data/1.zst")
    assert filled.run() == 0
    assert not list(filled.copies.rglob("*.pgbackrest.tmp"))
    shutil.rmtree(filled.repository / "backup/main" / label_of(filled, -1))
    assert filled.run() == 0, "a backup that was cut off is removed by pgBackRest"


def test_an_info_that_is_being_replaced_is_no_alarm(filled):
    """Over SFTP it is removed before the new one takes its name; its copy is there all the time."""
    (filled.repository / "backup/main/backup.info").unlink()
    assert filled.run() == 0


def test_what_is_lost_for_a_moment_is_looked_for_again(filled, monkeypatch):
    path = filled.repository / SEGMENT.format(98, "a" * 40)
    path.rename(filled.root / "hidden")
    monkeypatch.setattr(filled.module.time, "sleep", lambda _: (filled.root / "hidden").rename(path))
    assert filled.run() == 0


def test_an_earlier_program_left_no_memory(filled):
    """The newest backup in any copy counts, also when the last copy is of a repository that was wiped by then."""
    shutil.rmtree(filled.module.STATE)
    wipe(filled)
    (filled.copies / "2900-01-01T00-00-00Z").mkdir()
    assert filled.run() == 1


def test_there_is_no_backup_yet(place, capsys):
    assert place.run() == 0
    assert "no backup" in capsys.readouterr().out
    assert place.names() == []
    assert place.status()["at"] > 0


def test_a_disk_without_room_is_left_to_the_repository_and_heals(filled, monkeypatch, capsys):
    """What expired goes first; then there is room again."""
    usage = shutil.disk_usage(filled.root)
    old = filled.copies / filled.names()[0]
    free = lambda _: usage._replace(free=(50 if old.exists() else 500) * 2**20)  # noqa: E731
    monkeypatch.setattr(filled.module.shutil, "disk_usage", free)
    filled.free = 100
    filled.segment(99)
    assert filled.run() == 0
    assert not old.exists()

    filled.free = 1000
    before = filled.names()
    assert filled.run() == 1
    assert "not enough disk space: 500 MB are free" in capsys.readouterr().err
    assert "not enough disk space" in filled.status()["trouble"]
    assert filled.names() == before
    assert not (filled.copies / ".new").exists()


def test_a_copy_that_failed_leaves_nothing(filled, monkeypatch):
    def broken(argv, **_):
        (filled.copies / ".new").mkdir()
        raise CommandError("rsync ended with 11: x", 11)

    monkeypatch.setattr(filled.module, "run", broken)
    before = filled.names()
    assert filled.run() == 1
    assert "rsync ended with 11" in filled.status()["trouble"]
    assert before[-1] in filled.names()
    assert not (filled.copies / ".new").exists()


def test_wrong_arguments_do_nothing(filled):
    for arguments in (["30"], ["30", "x", "0"], ["--reject"]):
        with pytest.raises(FailedError, match=r"usage: .*--accept"):
            filled.module.main(arguments)


# --- putting a copy back ---------------------------------------------------------------------------------------------


@pytest.fixture
def put_back(filled):
    """The script in the test's own folder; `systemctl` and `chown` only write down what they were asked."""
    programs = filled.root / "bin"
    programs.mkdir()
    for name in ("systemctl", "chown"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {filled.root}/asked\n')
        (programs / name).chmod(0o755)
    text = (ROOT / "machine/minipc_machine/shell/offsite-restore-copy.sh").read_text()
    script = filled.root / "restore.sh"
    script.write_text(text.replace("/srv/minipc-offsite", str(filled.root)))

    def run(*arguments, **programs_):
        for name, body in programs_.items():
            (programs / name).write_text(f"#!/bin/sh\n{body}\n")
            (programs / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        return subprocess.run(["sh", str(script), *arguments], capture_output=True, text=True, env=environment)

    return run


def test_the_latest_copy_that_is_not_suspect_is_put_back(filled, put_back):
    before = filled.module.files(filled.repository)
    delete_newest(filled)
    assert filled.run() == 1
    done = put_back()
    assert done.returncode == 0, done.stderr
    assert filled.module.files(filled.repository) == before
    assert len(list(filled.copies.glob("aside-*"))) == 1
    assert filled.run("--accept") == 0
    assert filled.run() == 0
    asked = (filled.root / "asked").read_text().splitlines()
    assert [line.split()[1] for line in asked if line.startswith("systemctl")] == ["stop", "start"]


@pytest.mark.parametrize("programs", [{"cp": "exit 1"}, {"df": "printf 'Avail\\n0\\n'"}], ids=["copy fails", "no room"])
def test_a_copy_that_can_not_be_put_back_leaves_the_repository(filled, put_back, programs):
    before = filled.module.files(filled.repository)
    done = put_back(**programs)
    assert done.returncode == 1, done.stdout
    assert filled.module.files(filled.repository) == before
    assert not filled.repository.with_name("pgbackrest.new").exists()
    assert "systemctl" not in ((filled.root / "asked").read_text() if (filled.root / "asked").exists() else "")


# --- restic ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def restic(filled):
    """A repository of restic beside pgBackRest's."""
    for path in ("config", "data/aa/pack", "index/one", "keys/key", "snapshots/first", "locks/lock"):
        file = filled.module.RESTIC / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    return filled


def content(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_restic_is_copied_without_its_locks_and_a_bad_file_can_be_undone(restic, put_back):
    assert restic.run() == 0
    whole = content(restic.module.RESTIC) - {"locks/lock"}
    (first,) = restic.module.copies(folder=restic.module.RESTIC_COPIES)
    assert content(first) == whole
    (restic.module.RESTIC / "index/garbage").write_text("stops every command of restic")
    assert restic.run() == 0
    done = put_back("restic", first.name)
    assert done.returncode == 0, done.stderr
    assert content(restic.module.RESTIC) == whole
    asked = (restic.root / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("systemctl")] == [
        "systemctl stop restic-rest-server.service",
        "systemctl start restic-rest-server.service",
    ]


def test_without_a_name_the_latest_copy_is_put_back(restic, put_back):
    assert restic.run() == 0
    (restic.module.RESTIC / "snapshots/second").write_text("second")
    assert restic.run() == 0
    shutil.rmtree(restic.module.RESTIC)
    assert put_back("restic").returncode == 0
    assert "snapshots/second" in content(restic.module.RESTIC)


def test_what_a_copied_snapshot_needs_is_in_the_copy_although_a_backup_runs(restic, monkeypatch):
    def run(argv, **more):
        rsync(argv, **more)
        if argv[0] == "rsync" and argv[-2].endswith("/snapshots/"):
            for path in ("data/aa/late", "index/late", "snapshots/late"):
                (restic.module.RESTIC / path).write_text("late")
        return ""

    monkeypatch.setattr(restic.module, "run", run)
    assert restic.run() == 0
    (copy,) = restic.module.copies(folder=restic.module.RESTIC_COPIES)
    assert "snapshots/late" not in content(copy)
    assert {"data/aa/late", "index/late"} <= content(copy)


def test_old_copies_of_restic_go_and_the_last_one_stays(restic):
    folder = restic.module.RESTIC_COPIES
    for name in ("2020-01-01T00-00-00Z", "2020-01-02T00-00-00Z"):
        (folder / name).mkdir(parents=True)
    restic.module.copy_restic(30, 0)
    assert next(path.name for path in restic.module.copies(folder=folder)) == "2020-01-02T00-00-00Z"
    restic.module.copy_restic(30, 0)
    assert not [path for path in restic.module.copies(folder=folder) if path.name.startswith("2020")]


def test_a_copy_of_restic_that_fails_is_reported(restic):
    restic.free = 10**9
    assert restic.run() == 1
    assert "not enough disk space" in restic.status()["trouble"]
