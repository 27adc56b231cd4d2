"""Restore or refuse: a lost database is never answered by an empty one, and a lost machine is locked out."""

from __future__ import annotations

import pytest

from minipc.inventory import the_target
from minipc.run import Run
from minipc.secrets import open_store
from minipc.secrets.catalogue import SFTP_KEY
from playbooks import rebuild
from tests.lab.conftest import converge, on, run

# Each loses the database of the shared machine and brings it back: minutes, so not in `make test`.
pytestmark = pytest.mark.long

DATA = "/var/lib/postgresql/17/main"
RESTORE = ("--data", "postgres_from_backup=restore")
HIDE_REPO1 = "mv /var/lib/pgbackrest /var/lib/pgbackrest.aside; install -d -o postgres -g postgres /var/lib/pgbackrest"
SHOW_REPO1 = "rm -rf /var/lib/pgbackrest; mv /var/lib/pgbackrest.aside /var/lib/pgbackrest"
CONF = "/etc/pgbackrest/pgbackrest.conf"
USERS = "runuser -u postgres -- psql -XAtq -d workload -c 'SELECT count(*) FROM notification_settings'"


@pytest.fixture
def lost(site):
    """The site without its data directory: stopped and moved aside, and put back if the test left none."""
    on(site, "runuser -u postgres -- psql -qc 'SELECT pg_switch_wal()' -d postgres >/dev/null; sleep 3")
    before = on(site, USERS)
    on(site, f"systemctl stop postgresql@17-main; rm -rf {DATA}.aside; mv {DATA} {DATA}.aside")
    yield before
    # A repository that was away for a while has a gap in its WAL until its next backup.
    on(site, f"[ -s {DATA}/PG_VERSION ] || {{ rm -rf {DATA}; mv {DATA}.aside {DATA}; }}; rm -rf {DATA}.aside")
    assert converge(site, options=RESTORE).code == 0


@pytest.mark.timeout(900)
def test_a_database_that_is_there_is_refused_and_with_its_identifier_moved_aside(site):
    def rebuild_it(*options):
        words = ["--target", site.name, "--fingerprint", site.host_key_fingerprint, *options]
        return run("minipc", "rebuild", "--inventory", "lab", *words, timeout_s=600)

    found = on(site, f"/usr/lib/postgresql/17/bin/pg_controldata {DATA} | sed -n 's/^Database system identifier: *//p'")
    keys, rows = on(site, "cat /etc/pgbackrest/sftp_key"), on(site, USERS)
    for typed in ([], ["--replace-database", "1234567890123456789"]):
        refused = rebuild_it(*typed)
        assert refused.code == 3, refused.output
        assert found.strip() in " ".join(refused.output.split())
    assert on(site, f"cat /etc/pgbackrest/sftp_key; ls -d {DATA}.aside* 2>/dev/null || true") == keys, "it was changed"
    assert on(site, USERS) == rows, "it was stopped"

    on(site, "runuser -u postgres -- psql -qc 'SELECT pg_switch_wal()' -d postgres >/dev/null; sleep 3")
    done = rebuild_it("--replace-database", found.strip(), "--until", "smoke")
    try:
        assert "12 passed, 0 failed" in done.output
        assert on(site, f"ls -d {DATA}.aside-*/PG_VERSION").count("PG_VERSION") == 1
        assert on(site, USERS) == rows
        assert rebuild_it("--replace-database", found.strip(), "--until", "data").code in (0, 4), "it goes on"
        assert on(site, f"ls -d {DATA}.aside-*").count("aside") == 1
    finally:
        on(site, f"rm -rf {DATA}.aside-* /var/lib/minipc/rebuild-unfinished")


def test_a_missing_wal_segment_is_named_and_nothing_is_restored_over_the_gap(site, lost):
    """Unless that is what the operator wants."""
    newest = "ls /var/lib/pgbackrest/archive/main/17-*/*/0000* | grep -v backup | sort | tail -n 2 | head -n 1"
    path = on(site, newest).strip()
    segment = path.rpartition("/")[2][:24]
    on(site, f"mv {path} /root/kept-segment; cp -a {CONF} /root/kept.conf; sed -i '/^repo2-/d' {CONF}")
    settings = "/etc/minipc/backups/settings.json"
    on(
        site,
        f"cp -a {settings} /root/kept.json; tr -d '\\n' < /root/kept.json | sed 's/\\[ *1, *2 *\\]/[1]/' > {settings}",
    )
    restore = "/usr/local/lib/minipc/restore restore 2>&1; echo code $?"
    try:
        told = on(site, restore)
        assert f"WAL segment {segment[:8]}" in told, told
        assert "is missing in every repository" in told
        assert "code 1" in told
        assert on(site, f"ls {DATA} 2>/dev/null || true") == ""
        assert "code 0" in on(site, restore.replace("restore restore", "restore restore-incomplete"))
    finally:
        on(site, f"mv /root/kept-segment {path}; mv /root/kept.conf {CONF}; mv /root/kept.json {settings}")
        on(site, f"rm -rf {DATA}")


def test_a_database_that_is_gone_is_not_answered_by_an_empty_one(site, lost):
    done = converge(site, "postgres")
    assert done.code != 0
    assert "there is no database here, but there is a backup of one" in done.output
    assert "minipc rebuild" in done.output
    assert on(site, f"ls {DATA} 2>/dev/null || true") == ""

    assert converge(site, "postgres", options=RESTORE).code == 0
    assert on(site, USERS) == lost


def test_a_restore_that_was_cut_off_begins_anew(site, lost):
    on(
        site,
        f"install -d -o postgres -m 700 {DATA}; echo half > {DATA}/backup_label; chown postgres {DATA}/backup_label",
    )
    refused = converge(site, "postgres", options=RESTORE)
    assert refused.code != 0
    assert "is not empty; it is never overwritten" in refused.output, "without the mark it could be anybody's"

    # What pgBackRest had restored first may look like a database.
    on(site, f"echo 17 > {DATA}/PG_VERSION; touch /var/lib/minipc/backups/restore-unfinished")
    assert converge(site, "postgres", options=RESTORE).code == 0
    assert on(site, USERS) == lost
    assert on(site, "ls /var/lib/minipc/backups/restore-unfinished 2>/dev/null || true") == ""


def test_without_the_local_repository_the_off_site_one_serves(site, lost):
    on(site, HIDE_REPO1)
    try:
        done = converge(site, "postgres", options=RESTORE)
        assert done.code == 0, done.output
        assert '"repo": 2' in on(site, "cat /var/lib/minipc/backups/restore.json")
        assert on(site, USERS) == lost
    finally:
        on(site, SHOW_REPO1)


def test_a_repository_that_does_not_answer_is_no_reason_for_an_empty_database(site, offsite, lost):
    on(site, HIDE_REPO1)
    on(offsite, "systemctl stop minipc-sftp")
    try:
        done = converge(site, "postgres", options=RESTORE)
        assert done.code != 0
        assert "repo2 can't be asked" in done.output
        assert on(site, f"ls {DATA} 2>/dev/null || true") == ""
    finally:
        on(offsite, "systemctl start minipc-sftp")
        on(site, SHOW_REPO1)


def test_a_wrong_passphrase_is_told_and_makes_no_database(site, lost):
    on(site, f"cp -a {CONF} /root/kept.conf; sed -i 's/cipher-pass=.*/cipher-pass=wrong/' {CONF}")
    try:
        done = on(site, "/usr/local/lib/minipc/restore restore 2>&1; echo code $?")
        assert "code 4" in done, done
        assert on(site, f"ls {DATA} 2>/dev/null || true") == ""
    finally:
        on(site, f"mv /root/kept.conf {CONF}")


def test_the_lost_machine_is_locked_out_when_it_comes_back(site, offsite):
    """The site plays the old machine: after the fence its key archives nothing any more."""
    check = "cd / && runuser -u postgres -- pgbackrest --repo=2 repo-ls 2>&1; echo code $?"
    assert "code 0" in on(site, check)
    store = open_store("lab")
    old = store.get(SFTP_KEY).reveal()
    rebuild.fence(Run("rebuild"), "lab", the_target("lab", site.name))
    try:
        assert "code 0" not in on(site, check)
        # A computer that was not told of the rebuild converges the off-site machine.
        new = store.get(SFTP_KEY).reveal()
        store.set_many({SFTP_KEY: old})
        refused = converge(offsite, "offsite")
        store.set_many({SFTP_KEY: new})
        assert refused.code == 3, refused.output
        assert "older than the last rebuild" in refused.output
        assert "code 0" not in on(site, check)
    finally:
        assert converge(site, "repositories").code == 0, "with the new key it is the new machine again"
    assert "code 0" in on(site, check)
