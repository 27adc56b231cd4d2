"""Checks of the backups: they exist, are recent and encrypted, WAL arrives, and files can be restored."""

from __future__ import annotations

import json
import re
import time

import pytest

from minipc.config.components import backup_paths
from minipc.config.offsite import NONE as NO_OFFSITE
from minipc.config.offsite import restic_command
from tests.verify.conftest import eventually, not_exercised

DAY_S = 86400
BACKUPS = [f"minipc-backup-{kind}" for kind in ("full", "diff", "files", "again")]
TIMERS = [*BACKUPS, "minipc-drill", "minipc-heartbeat"]
METRICS = "/var/lib/prometheus/node-exporter/minipc_backups.prom"


@pytest.fixture(scope="session")
def info(sh):
    """Return a function for pgBackRest's information about a repository, fetched once for each."""
    known = {}

    def of(repo):
        if repo not in known:
            known[repo] = look(sh, repo)
        return known[repo]

    return of


def look(sh, repo):
    command = f"cd / && runuser -u postgres -- pgbackrest --stanza=main --repo={repo} --output=json info"
    return json.loads(sh(command))[0]


@pytest.fixture(params=[1, 2], ids=["repo1", "repo2"])
def repo(request, settings):
    if request.param == 2:
        needs_offsite(settings)
    return request.param


def needs_offsite(settings):
    if not settings.has_offsite:
        not_exercised(NO_OFFSITE)


def test_a_recent_backup_is_there(info, repo, settings):
    """The repository contains a recent backup without checksum errors."""
    backups = info(repo)["backup"]
    assert backups, f"repo{repo} holds no backup"
    newest = max(each["timestamp"]["stop"] for each in backups)
    assert time.time() - newest < DAY_S + settings.backups.random_delay_s + 3600
    newest_full = max(each["timestamp"]["stop"] for each in backups if each["type"] == "full")
    assert time.time() - newest_full < 8 * DAY_S
    assert not any(each.get("error") for each in backups), "a backup has pages with a wrong checksum"


def test_the_backups_are_of_this_database(info, repo, sql):
    """The backups in the repository belong to this database cluster."""
    assert str(info(repo)["db"][-1]["system-id"]) == sql("SELECT system_identifier FROM pg_control_system()")


@pytest.fixture(scope="session")
def segment(sql):
    """Complete a WAL segment that contains a commit, and return its name."""
    # Without a write since the last switch, PostgreSQL 17 names the segment that is still empty.
    sql("SELECT pg_logical_emit_message(true, 'minipc-verify', '')")
    return sql("SELECT pg_walfile_name(pg_switch_wal())")


def test_a_wal_segment_arrives(sh, segment, repo):
    """A WAL segment that was just completed arrives in the repository."""

    def arrived():
        return look(sh, repo)["archive"][-1]["max"] >= segment

    assert eventually(arrived, 60, every_s=0.2), f"{segment} has not arrived in repo{repo}"


def test_archiving_has_no_failure_that_lasts(sql):
    """The last attempt to archive WAL succeeded."""
    row = sql(
        "SELECT coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) FROM pg_stat_archiver"
    )
    assert row == "f"


def test_archiving_is_bounded_in_time(sql, settings):
    """PostgreSQL archives WAL at least as often as configured."""
    assert sql("SHOW archive_mode") == "on"
    assert (
        int(sql("SELECT setting FROM pg_settings WHERE name = 'archive_timeout'")) == settings.backups.archive_timeout_s
    )


def test_the_heart_beats(sql):
    """A heartbeat row was written to the database within the last 90 seconds."""
    age = "SELECT coalesce(extract(epoch FROM now() - max(at)), 1e9)::int FROM heartbeat"
    assert eventually(lambda: int(sql(age, "minipc")) < 90, 65, every_s=2), "no heartbeat row within 90 s"


@pytest.mark.parametrize("name", TIMERS)
def test_it_runs_by_itself(units, settings, name):
    """The timer is active and enabled."""
    timer = units(f"{name}.timer")
    assert (timer["ActiveState"], timer["UnitFileState"]) == ("active", "enabled")
    if name != "minipc-heartbeat":
        assert timer["Persistent"] == "yes"
        assert timer["RandomizedDelayUSec"] != "0" or settings.backups.random_delay_s == 0


@pytest.mark.parametrize(
    "unit",
    [
        "minipc-backup@full.service",
        "minipc-backup@files.service",
        "minipc-drill@next.service",
        "minipc-heartbeat.service",
    ],
)
def test_units_are_confined_and_tell_when_they_fail(units, unit):
    """The unit runs with few privileges and reports when it fails."""
    properties = units(unit)
    assert properties["ProtectSystem"] == "strict"
    assert properties["NoNewPrivileges"] == "yes"
    assert properties["PrivateDevices"] == "yes"
    assert "cap_sys_admin" not in properties.get("CapabilityBoundingSet", "")
    assert f"minipc-failed@{unit}.service" in properties["OnFailure"].split()


def test_the_result_of_a_drill_goes_off_site_at_once(units):
    """The result of a restore drill is copied off-site immediately."""
    properties = units("minipc-drill@next.service")
    for end in ("OnSuccess", "OnFailure"):
        assert "minipc-backup@files.service" in properties[end].split()


def test_a_failure_becomes_a_metric_and_a_journal_entry(disturb):
    """A failed unit is reported as a metric and in the journal."""
    unit = "minipc-canary-failure"
    metric = "/var/lib/prometheus/node-exporter/minipc_failed_minipc_canary_failure.prom"
    disturb(f"systemd-run -q --unit={unit} -p OnFailure=minipc-failed@{unit}.service.service false; true")
    try:
        assert eventually(lambda: disturb(f"cat {metric} 2>/dev/null || true"), 10), "no metric tells the failure"
        assert f'unit="{unit}.service"' in disturb(f"cat {metric}")
        assert eventually(lambda: disturb("journalctl -t minipc-failed -o cat -n 5 | grep canary || true"), 5)
    finally:
        disturb(f"rm -f {metric}; systemctl reset-failed {unit}")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/pgbackrest/pgbackrest.conf", "root postgres 640"),
        ("/etc/pgbackrest/sftp_key", "postgres postgres 600"),
        ("/etc/minipc/backups/restic.password", "root root 600"),
        ("/etc/minipc/backups/s3.credentials", "root root 600"),
        ("/etc/minipc/backups/restic.repository", "root root 600"),
        ("/var/lib/pgbackrest", "postgres postgres 750"),
    ],
)
def test_only_who_needs_it_reads_it(sh, settings, path, expected):
    """The backup file has the expected owner, group and mode."""
    if "sftp" in path or "restic" in path:
        needs_offsite(settings)
    if "sftp" in path and settings.offsite.s3:
        not_exercised("a bucket has no SFTP")
    if path.endswith("s3.credentials") and not settings.offsite.s3:
        not_exercised("the off-site side is not a bucket")
    assert sh(f"stat -c '%U %G %a' {path}") == expected


def test_what_is_stored_is_encrypted(sh):
    """All files in the local backup repository are encrypted.

    Each file must begin with the header that OpenSSL writes.
    """
    files = sh("find /var/lib/pgbackrest -type f -size +0 | head -200").splitlines()
    heads = sh("find /var/lib/pgbackrest -type f -size +0 | head -200 | xargs -n1 head -c8 | tr -d '\\0'")
    assert files
    assert heads == "Salted__" * len(files)


def test_a_file_comes_back_from_restic(sh, settings):
    """A file restored from restic has the same content as the file on the machine."""
    needs_offsite(settings)
    stored = sh(f"{restic_command(settings)} dump --tag minipc latest /etc/minipc/identity")
    assert stored == sh("cat /etc/minipc/identity")


@pytest.fixture(scope="session")
def stored(sh, settings):
    """Return the paths in the last backup of configuration and state, and the paths that must be in it."""
    needs_offsite(settings)
    there = set(sh(f"ls -d {' '.join(path for _, path in backup_paths())} 2>/dev/null || true").splitlines())

    def last():
        return set(json.loads(sh(f"{restic_command(settings)} snapshots --json --latest 1 --tag minipc"))[-1]["paths"])

    paths = last()
    if there - paths:  # they came after the last run
        sh("systemctl start minipc-backup@files.service")
        paths = last()
    return paths, there


@pytest.mark.parametrize("path", [path for _, path in backup_paths()])
def test_configuration_and_state_are_in_the_backup(stored, path):
    """The path is contained in the last backup of configuration and state."""
    paths, there = stored
    if path not in there:
        not_exercised(f"{path} is not on this machine")
    assert path in paths


def test_the_metrics_say_so(sh, settings):
    """The metrics report a successful backup for every repository."""
    text = sh(f"cat {METRICS}")
    repos = {"repo1", "repo2", "restic"} if settings.has_offsite else {"repo1"}
    assert set(re.findall(r'^minipc_backup_success\{repo="(\w+)"\} 1$', text, re.M)) == repos
    for name in ("last_success_timestamp_seconds", "duration_seconds", "size_bytes"):
        assert set(re.findall(rf'^minipc_backup_{name}\{{repo="(\w+)"\}} [0-9.e+]+$', text, re.M)) == repos
    assert sh(f"stat -c '%a' {METRICS}") == "644"


def test_no_repository_drops_wal_when_it_is_slow(sh):
    """WAL is never dropped when a repository is slow."""
    assert not re.search(r"^archive-push-queue-max", sh("cat /etc/pgbackrest/pgbackrest.conf"), re.M)
