"""Backups of a machine whose off-site machine comes and goes."""

from __future__ import annotations

import json
import re

import pytest

from tests.lab.conftest import converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]
METRICS = "cat /var/lib/prometheus/node-exporter/minipc_backups.prom"
SQL = "runuser -u postgres -- psql -XAtq"


def successes(mini) -> dict[str, str]:
    """Repository -> "1" or "0", from the metrics."""
    return dict(re.findall(r'^minipc_backup_success\{repo="(\w+)"\} (\d)$', on(mini, METRICS), re.M))


def backup_now(pair):
    return run("minipc", "backup", "now", "--inventory", "lab", "--host", pair.mini.name, timeout_s=200)


def test_both_machines_do_what_they_should(pair):
    for machine, components in ((pair.offsite, ["offsite"]), (pair.mini, ["backups"])):
        done = run("minipc", "verify", "--inventory", "lab", "--host", machine.name, *components, timeout_s=280)
        assert done.code == 0, done.output
        assert " 0 failed" in done.output


def test_a_second_converge_changes_nothing(pair):
    for machine, deploys in ((pair.offsite, ["offsite"]), (pair.mini, ["repositories", "postgres", "backups"])):
        done = converge(machine, *deploys)
        assert done.code == 0, done.output
        total = re.search(r"Grand total\s+(\d+)\s+(\S+)\s+(\S+)\s+(\d+)", done.output)
        assert total, done.output
        assert total[1] == total[4], done.output


def test_backup_now_takes_one_of_each(pair):
    done = backup_now(pair)
    assert done.code == 0, done.output
    for repo in ("repo1", "repo2"):
        assert re.search(rf"^{repo}: \d+-\d+F_\d+-\d+D, \d+ bytes stored", done.output, re.M), done.output
    assert re.search(r"^restic: [0-9a-f]{8}, \d+ bytes stored", done.output, re.M)


def test_with_the_off_site_machine_down_nothing_is_lost(pair):
    """repo1 goes on, the failure is told, WAL waits, and all of it arrives once the machine is back."""
    on(pair.offsite, "systemctl stop minipc-sftp restic-rest-server")
    try:
        segment = on(pair.mini, f"{SQL} -c 'SELECT pg_walfile_name(pg_switch_wal())'").strip()
        done = backup_now(pair)
        assert done.code == 1, done.output
        assert "repo2: FAILED" in done.output
        assert successes(pair.mini) == {"repo1": "1", "repo2": "0", "restic": "0"}
        waiting = on(pair.mini, "ls /var/lib/postgresql/17/main/pg_wal/archive_status")
        assert f"{segment}.ready" in waiting
        failed = on(pair.mini, "cat /var/lib/prometheus/node-exporter/minipc_failed_*.prom")
        assert 'unit="minipc-backup@diff.service"' in failed
    finally:
        on(pair.offsite, "systemctl start minipc-sftp restic-rest-server")
    assert backup_now(pair).code == 0
    assert successes(pair.mini) == {"repo1": "1", "repo2": "1", "restic": "1"}
    on(pair.mini, "runuser -u postgres -- pgbackrest --stanza=main check", timeout_s=180)
    on(pair.mini, "systemctl reset-failed")
    assert segment in on(pair.offsite, "find /srv/minipc-offsite/sftp/pgbackrest/archive -type f")


def test_a_database_that_was_not_backed_up_is_refused(pair):
    marker = "/var/lib/minipc/backups/stanza.json"
    on(pair.mini, f"cp {marker} /run/kept && sed -i 's/[0-9]\\{{15,\\}}/1234567890123456789/' {marker}")
    try:
        done = converge(pair.mini, "backups")
    finally:
        on(pair.mini, f"cp /run/kept {marker}")
    assert done.code == 3, done.output
    assert "1234567890123456789" in done.output


def test_a_stanza_of_another_database_is_never_taken_over(pair):
    """A new, empty cluster in the place of the real one: refused, and the repositories keep what they have."""

    def held():
        info = json.loads(on(pair.mini, "runuser -u postgres -- pgbackrest --stanza=main --output=json info"))[0]
        return info["db"], info["backup"]

    before = held()
    port = "/etc/minipc/backups/settings.json"
    make = "pg_createcluster 17 empty -p 5499 -- --no-sync >/dev/null && systemctl start postgresql@17-empty"
    on(pair.mini, f'cp {port} /run/kept; {make} && sed -i \'s/"port": 5432/"port": 5499/\' {port}')
    try:
        told = on(pair.mini, "/usr/local/lib/minipc/stanza 2>&1; echo exit $?")
    finally:
        on(pair.mini, f"cp /run/kept {port}; pg_dropcluster --stop 17 empty")
    assert told.endswith("exit 3\n"), told
    assert "contains the backups of another database" in told
    assert held() == before
