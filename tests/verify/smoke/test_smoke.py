"""The smoke list: what must be true before anybody says that the service is back. In the order in which one asks.

`minipc verify --smoke`; the last but one phase of every rebuild, and so of every rehearsal. What it writes, it removes.
"""

from __future__ import annotations

import json
import secrets as random

import pytest

from tests.verify.conftest import eventually, not_exercised

JSON_BODY = ("--header", "Content-Type: application/json", "--data")
OUTCOMES = "/var/lib/minipc/backups/outcomes.json"


@pytest.fixture(scope="module")
def user(service, sql):
    """A user of its own, of whom nothing stays."""
    name = f"smoke-{random.token_hex(6)}"
    yield name
    tables = ("notification_settings", "push_subscriptions", "app_events", "audit_log")
    sql(";".join(f"DELETE FROM {table} WHERE user_id = '{name}'" for table in tables), "workload")


@pytest.fixture(scope="module")
def offsite(settings):
    if settings.backups.offsite is None:
        not_exercised("there is no off-site machine: backups_offsite is None")


@pytest.fixture(scope="module")
def backed_up(sh, settings):
    """What became of one backup into each repository, taken now; the units end with an error when one fails."""
    units = ["minipc-backup@diff.service", *(["minipc-backup@files.service"] if settings.backups.offsite else [])]
    began = float(sh("date +%s"))
    outcomes = json.loads(sh(f"{'; '.join(f'systemctl start {unit}' for unit in units)}; cat {OUTCOMES}"))
    return {repo: outcome for repo, outcome in outcomes.items() if outcome["ended"] >= began}


def test_the_public_name_answers(service, edge):
    assert eventually(lambda: edge.get("/api/readyz").code == 200, within_s=60, every_s=1), edge.get("/api/readyz")


def test_the_service_says_that_it_is_well(service, api):
    """Its database answers and its workers beat; the first beats come within a minute of a start."""
    assert eventually(lambda: api("/api/health").code == 200, within_s=90, every_s=1), api("/api/health").body


def test_must_recover_is_written_and_read(edge, sql, user):
    wish = {"parking_alerts": True, "outing_alerts": False, "min_free_spaces": 4321}
    written = edge.get(f"/api/settings/{user}", "--request", "PUT", *JSON_BODY, json.dumps(wish))
    assert written.code == 200, written.body
    assert edge.get(f"/api/settings/{user}").json()["min_free_spaces"] == 4321
    found = sql(f"SELECT min_free_spaces FROM notification_settings WHERE user_id = '{user}'", "workload")
    assert found == "4321"


def test_evidence_is_written_and_read(edge, sql, user):
    event = {"user": user, "kind": "smoke", "payload": {"mark": user}}
    written = edge.get("/api/events", *JSON_BODY, json.dumps(event))
    assert written.code == 201, written.body
    assert edge.get(f"/api/events/{written.json()['id']}").json()["payload"] == {"mark": user}
    assert sql(f"SELECT count(*) FROM app_events WHERE user_id = '{user}' AND kind = 'smoke'", "workload") == "1"


def test_the_rebuildable_is_collected_again(service, edge, sql):
    """A screen shows it, and the newest of it is no older than its worker is allowed to be."""
    age = """SELECT coalesce(max(observed_at) > now() - (SELECT make_interval(secs => stale_threshold_s)
             FROM worker_heartbeats WHERE worker = 'ingest'), false) FROM parking_observations"""
    assert eventually(lambda: sql(age, "workload") == "t", within_s=75, every_s=1), "nothing new was collected"
    assert edge.get("/api/parking").code == 200


def test_the_cache_takes_and_gives(service, as_workload):
    key = f"workload:smoke-{random.token_hex(6)}"
    assert as_workload(f"SET {key} yes EX 60", f"GET {key}") == ["OK", "yes"]


def test_every_worker_beats(service, sql):
    beats = """SELECT count(*) FILTER (WHERE beat_at > now() - interval '10 minutes'), count(*)
               FROM worker_heartbeats"""
    assert eventually(lambda: sql(beats, "workload") == "3|3", within_s=75, every_s=1), sql(beats, "workload")


@pytest.mark.parametrize("repo", ["repo1", "repo2", "restic"])
def test_a_backup_runs_again(backed_up, settings, repo):
    if repo != "repo1" and settings.backups.offsite is None:
        not_exercised("there is no off-site machine: backups_offsite is None")
    assert repo in backed_up, f"{repo} was not even tried"
    assert backed_up[repo]["success"], backed_up[repo]["error"]


def test_wal_reaches_every_repository(sh):
    sh("cd / && runuser -u postgres -- pgbackrest --stanza=main check")


def test_the_off_site_machine_is_reachable(offsite, sh):
    """By both ways, with this machine's own keys."""
    info = json.loads(sh("cd / && runuser -u postgres -- pgbackrest --stanza=main --repo=2 --output=json info"))
    assert info[0]["backup"], "repo2 holds no backup"
    etc = "/etc/minipc/backups"
    options = f"--repository-file {etc}/restic.repository --password-file {etc}/restic.password"
    sh(f"restic {options} --cacert {etc}/offsite.crt --cache-dir /var/cache/minipc-restic cat config >/dev/null")
