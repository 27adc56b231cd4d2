"""Backups: that they exist, are recent and encrypted, that WAL arrives, and that what was stored comes back."""

from __future__ import annotations

import json
import re
import time

import pytest

from minipc.components import backup_paths
from tests.verify.conftest import eventually, not_exercised

DAY_S = 86400
TIMERS = ["minipc-backup-full", "minipc-backup-diff", "minipc-backup-files", "minipc-drill", "minipc-heartbeat"]
METRICS = "/var/lib/prometheus/node-exporter/minipc_backups.prom"
ETC = "/etc/minipc/backups"
RESTIC = (
    f"restic --repository-file {ETC}/restic.repository --password-file {ETC}/restic.password "
    f"--cacert {ETC}/offsite.crt --cache-dir /var/cache/minipc-restic"
)


@pytest.fixture(scope="session")
def info(sh):
    """pgBackRest's view of a repository, asked once for each."""
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
    if settings.backups.offsite is None:
        not_exercised("there is no off-site machine: backups_offsite is None")


def test_a_recent_backup_is_there(info, repo, settings):
    backups = info(repo)["backup"]
    assert backups, f"repo{repo} holds no backup"
    newest = max(each["timestamp"]["stop"] for each in backups)
    assert time.time() - newest < DAY_S + settings.backups.random_delay_s + 3600
    newest_full = max(each["timestamp"]["stop"] for each in backups if each["type"] == "full")
    assert time.time() - newest_full < 8 * DAY_S
    assert not any(each.get("error") for each in backups), "a backup has pages with a wrong checksum"


def test_the_backups_are_of_this_database(info, repo, sql):
    assert str(info(repo)["db"][-1]["system-id"]) == sql("SELECT system_identifier FROM pg_control_system()")


@pytest.fixture(scope="session")
def segment(sql):
    """The name of a WAL segment that has just ended, with a commit in it."""
    # Without a write since the last switch, PostgreSQL 17 names the segment that is still empty.
    sql("SELECT pg_logical_emit_message(true, 'minipc-verify', '')")
    return sql("SELECT pg_walfile_name(pg_switch_wal())")


def test_a_wal_segment_arrives(sh, segment, repo):
    """That very segment is in the repository."""

    def arrived():
        return look(sh, repo)["archive"][-1]["max"] >= segment

    assert eventually(arrived, 60, every_s=0.2), f"{segment} has not arrived in repo{repo}"


def test_archiving_has_no_failure_that_lasts(sql):
    row = sql(
        "SELECT coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) FROM pg_stat_archiver"
    )
    assert row == "f"


def test_archiving_is_bounded_in_time(sql, settings):
    assert sql("SHOW archive_mode") == "on"
    assert (
        int(sql("SELECT setting FROM pg_settings WHERE name = 'archive_timeout'")) == settings.backups.archive_timeout_s
    )


def test_the_heart_beats(sql):
    age = "SELECT coalesce(extract(epoch FROM now() - max(at)), 1e9)::int FROM heartbeat"
    assert eventually(lambda: int(sql(age, "minipc")) < 90, 65, every_s=2), "no heartbeat row within 90 s"


@pytest.mark.parametrize("name", TIMERS)
def test_it_runs_by_itself(units, settings, name):
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
    properties = units(unit)
    assert properties["ProtectSystem"] == "strict"
    assert properties["NoNewPrivileges"] == "yes"
    assert properties["PrivateDevices"] == "yes"
    assert "cap_sys_admin" not in properties.get("CapabilityBoundingSet", "")
    assert f"minipc-failed@{unit}.service" in properties["OnFailure"].split()


def test_the_result_of_a_drill_goes_off_site_at_once(units):
    properties = units("minipc-drill@next.service")
    for end in ("OnSuccess", "OnFailure"):
        assert "minipc-backup@files.service" in properties[end].split()


def test_a_failure_becomes_a_metric_and_a_journal_entry(disturb):
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
        ("/etc/minipc/backups/restic.repository", "root root 600"),
        ("/var/lib/pgbackrest", "postgres postgres 750"),
    ],
)
def test_only_who_needs_it_reads_it(sh, settings, path, expected):
    if "sftp" in path or "restic" in path:
        needs_offsite(settings)
    assert sh(f"stat -c '%U %G %a' {path}") == expected


def test_what_is_stored_is_encrypted(sh):
    """Each file of the local repository begins as OpenSSL's encryption does."""
    files = sh("find /var/lib/pgbackrest -type f -size +0 | head -200").splitlines()
    heads = sh("find /var/lib/pgbackrest -type f -size +0 | head -200 | xargs -n1 head -c8 | tr -d '\\0'")
    assert files
    assert heads == "Salted__" * len(files)


def test_a_file_comes_back_from_restic(sh, settings):
    needs_offsite(settings)
    assert sh(f"{RESTIC} dump latest /etc/minipc/identity") == sh("cat /etc/minipc/identity")


@pytest.fixture(scope="session")
def stored(sh, settings):
    """The paths in the last backup of configuration and state, and those of them that should be in it."""
    needs_offsite(settings)
    there = set(sh(f"ls -d {' '.join(path for _, path in backup_paths())} 2>/dev/null || true").splitlines())

    def last():
        return set(json.loads(sh(f"{RESTIC} snapshots --json --latest 1 --tag minipc"))[-1]["paths"])

    paths = last()
    if there - paths:  # they came after the last run
        sh("systemctl start minipc-backup@files.service")
        paths = last()
    return paths, there


@pytest.mark.parametrize("path", [path for _, path in backup_paths()])
def test_configuration_and_state_are_in_the_backup(stored, path):
    paths, there = stored
    if path not in there:
        not_exercised(f"{path} is not on this machine")
    assert path in paths


def test_the_metrics_say_so(sh, settings):
    text = sh(f"cat {METRICS}")
    repos = {"repo1", "repo2", "restic"} if settings.backups.offsite else {"repo1"}
    assert set(re.findall(r'^minipc_backup_success\{repo="(\w+)"\} 1$', text, re.M)) == repos
    for name in ("last_success_timestamp_seconds", "duration_seconds", "size_bytes"):
        assert set(re.findall(rf'^minipc_backup_{name}\{{repo="(\w+)"\}} [0-9.e+]+$', text, re.M)) == repos
    assert sh(f"stat -c '%a' {METRICS}") == "644"


def test_no_repository_drops_wal_when_it_is_slow(sh):
    assert not re.search(r"^archive-push-queue-max", sh("cat /etc/pgbackrest/pgbackrest.conf"), re.M)
