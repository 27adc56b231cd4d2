"""Test restore or refuse: a lost database is never replaced by an empty one, and a lost machine is locked out."""

from __future__ import annotations

import json

import pytest

from minipc import config
from minipc.core.environment import LAB
from minipc.evidence.run import Run
from minipc.remote.inventory import the_target
from minipc.secrets import open_store
from minipc.secrets.catalogue import SFTP_KEY
from playbooks import rebuild
from rehearsal import lab
from tests.lab.conftest import converge, on, run
from tests.verify.conftest import eventually

# Each loses the database of the shared machine and brings it back: minutes, so not in `make test`.
pytestmark = pytest.mark.long

DATA = "/var/lib/postgresql/17/main"
RESTORE = ("--data", "postgres_from_backup=restore")
HIDE_REPO1 = "mv /var/lib/pgbackrest /var/lib/pgbackrest.aside; install -d -o postgres -g postgres /var/lib/pgbackrest"
SHOW_REPO1 = "rm -rf /var/lib/pgbackrest; mv /var/lib/pgbackrest.aside /var/lib/pgbackrest"
CONF = "/etc/pgbackrest/pgbackrest.conf"
SERVICE = next(each for each in config.load("lab").services.declared if each.postgres)
DATABASE = SERVICE.postgres.database if SERVICE.postgres else ""
TABLE = next(iter(SERVICE.data_classes["must recover"]))
USERS = f"runuser -u postgres -- psql -XAtq -d {DATABASE} -c 'SELECT count(*) FROM {TABLE}'"


@pytest.fixture
def lost(site):
    """Move the data directory aside. Put it back afterwards if the test left none."""
    on(site, "runuser -u postgres -- psql -qc 'SELECT pg_switch_wal()' -d postgres >/dev/null; sleep 3")
    before = on(site, USERS)
    on(site, f"systemctl stop postgresql@17-main; rm -rf {DATA}.aside; mv {DATA} {DATA}.aside")
    yield before
    # A repository that was away for a while has a gap in its WAL until its next backup.
    on(site, f"[ -s {DATA}/PG_VERSION ] || {{ rm -rf {DATA}; mv {DATA}.aside {DATA}; }}; rm -rf {DATA}.aside")
    assert converge(site, options=RESTORE).code == 0


@pytest.mark.timeout(900)
def test_an_existing_database_is_refused_and_with_its_identifier_moved_aside(site):
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


@pytest.mark.timeout(900)
def test_a_rebuild_returns_to_the_moment_before_the_damage(site):
    """Rows that were deleted later are there again, what is newer is kept, and volumes are from before the moment."""
    options = ["--inventory", "lab", "--target", site.name, "--fingerprint", site.host_key_fingerprint]
    identifier = f"/usr/lib/postgresql/17/bin/pg_controldata {DATA} | sed -n 's/^Database system identifier: *//p'"
    psql = "runuser -u postgres -- psql -XAtq"
    for unit in ("full", "files"):
        on(site, f"systemctl start minipc-backup@{unit}", timeout_s=300)
    on(site, f"{psql} -d minipc -c 'CREATE TABLE damage (n int); INSERT INTO damage VALUES (1)'")
    rows = on(site, USERS)
    moment = on(site, "sleep 1; date -u +%Y-%m-%dT%H:%M:%S.%6N+00:00; sleep 1").strip()
    on(site, f"{psql} -d minipc -c 'DELETE FROM damage; INSERT INTO heartbeat DEFAULT VALUES; SELECT pg_switch_wal()'")
    on(site, "sleep 5")
    aside = "ls -d /var/lib/minipc/aside-* 2>/dev/null || true"
    words = ["--replace-database", on(site, identifier).strip(), "--at", moment]
    try:
        done = run("minipc", "rebuild", *options, *words, "--until", "smoke", timeout_s=800)
        assert "12 passed, 0 failed" in done.output, done.output[-3000:]
        assert on(site, f"{psql} -d minipc -c 'SELECT count(*) FROM damage'").strip() == "1"
        assert int(on(site, USERS)) >= int(rows), "the services write again"
        assert on(site, aside)
        assert on(site, "ls /var/lib/minipc/rebuild-at 2>/dev/null || true") == ""
        # The newest backup is one of the new history: a rebuild without a moment is possible again.
        newest = "runuser -u postgres -- pgbackrest --output=json info"
        for repo in (1, 2):
            found = json.loads(on(site, f"cd /; {newest} --stanza=main --repo={repo}"))[0]["backup"][-1]
            assert int(found["archive"]["start"][:8], 16) > 1
    finally:
        on(site, f"{psql} -d minipc -c 'DROP TABLE IF EXISTS damage'", check=False)
        on(site, f"rm -rf {DATA}.aside-* /var/lib/minipc/aside-* /var/lib/minipc/rebuild-*")


def test_a_missing_wal_segment_is_named_and_nothing_is_restored_over_the_gap(site, lost):
    """The operator can accept the gap explicitly."""
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
        output = on(site, restore)
        assert f"WAL segment {segment[:8]}" in output, output
        assert "is missing in every repository" in output
        assert "code 1" in output
        assert on(site, f"ls {DATA} 2>/dev/null || true") == ""
        assert "code 0" in on(site, restore.replace("restore restore", "restore restore-incomplete"))
    finally:
        on(site, f"mv /root/kept-segment {path}; mv /root/kept.conf {CONF}; mv /root/kept.json {settings}")
        on(site, f"rm -rf {DATA}")


def test_a_lost_database_is_not_replaced_by_an_empty_one(site, lost):
    done = converge(site, "postgres")
    assert done.code != 0
    assert "there is no database here, but there is a backup of one" in done.output
    assert "minipc rebuild" in done.output
    assert on(site, f"ls {DATA} 2>/dev/null || true") == ""

    assert converge(site, "postgres", options=RESTORE).code == 0
    assert on(site, USERS) == lost


def test_an_interrupted_restore_starts_again(site, lost):
    on(
        site,
        f"install -d -o postgres -m 700 {DATA}; echo half > {DATA}/backup_label; chown postgres {DATA}/backup_label",
    )
    refused = converge(site, "postgres", options=RESTORE)
    assert refused.code != 0
    assert "is not empty, and is never overwritten" in refused.output, "without the mark it could be anybody's"

    # What pgBackRest had restored first may look like a database.
    on(site, f"echo 17 > {DATA}/PG_VERSION; touch /var/lib/minipc/backups/restore-unfinished")
    assert converge(site, "postgres", options=RESTORE).code == 0
    assert on(site, USERS) == lost
    assert on(site, "ls /var/lib/minipc/backups/restore-unfinished 2>/dev/null || true") == ""


def test_without_the_local_repository_the_off_site_one_is_used(site, lost):
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
        assert "repo2 can't be read" in done.output
        assert on(site, f"ls {DATA} 2>/dev/null || true") == ""
    finally:
        on(offsite, "systemctl start minipc-sftp")
        on(site, SHOW_REPO1)


def test_a_wrong_passphrase_is_an_error_and_creates_no_database(site, lost):
    on(site, f"cp -a {CONF} /root/kept.conf; sed -i 's/cipher-pass=.*/cipher-pass=wrong/' {CONF}")
    try:
        done = on(site, "/usr/local/lib/minipc/restore restore 2>&1; echo code $?")
        assert "code 4" in done, done
        assert on(site, f"ls {DATA} 2>/dev/null || true") == ""
    finally:
        on(site, f"mv /root/kept.conf {CONF}")


def test_the_lost_machine_is_locked_out_when_it_comes_back(site, offsite):
    """The site is the lost machine here: after the fence its key can archive nothing, and it stops serving."""
    ask = "systemctl start minipc-replaced; systemctl is-active caddy || true"
    # Neither an off-site host that is away, nor a key that was renewed for another reason, stops anything.
    line = "inet minipc-test"
    block = f"nft add table {line}; nft add chain {line} out '{{ type filter hook output priority 0; }}'; "
    on(site, f"{block} nft add rule {line} out tcp dport 2222 drop")
    try:
        assert on(site, ask).strip() == "active"
    finally:
        on(site, f"nft delete table {line}")
    assert on(site, ask).strip() == "active"
    check = "cd / && runuser -u postgres -- pgbackrest --repo=2 repo-ls 2>&1; echo code $?"
    assert "code 0" in on(site, check)
    store = open_store("lab")
    old = store.get(SFTP_KEY).reveal()
    rebuild.fence(Run("rebuild"), LAB, the_target(LAB, site.name))
    try:
        assert "code 0" not in on(site, check)
        assert on(site, ask).strip() == "inactive"
        assert "was replaced" in on(site, "cat /run/motd.d/minipc-replaced")
        # Also without the off-site host, after a reboot.
        on(offsite, "systemctl stop minipc-sftp")
        lab.power_off(site)
        lab.start(site)
        assert on(site, ask).strip() == "inactive"
        on(offsite, "systemctl start minipc-sftp")
        # A computer that does not know of the rebuild converges the off-site machine.
        new = store.get(SFTP_KEY).reveal()
        store.set_many({SFTP_KEY: old})
        refused = converge(offsite, "offsite")
        store.set_many({SFTP_KEY: new})
        assert refused.code == 3, refused.output
        assert "older than the last rebuild" in refused.output
        assert "code 0" not in on(site, check)
    finally:
        assert converge(site, "repositories", "prometheus").code == 0, "with the new key it is the new machine again"
    assert "code 0" in on(site, check)
    assert eventually(lambda: on(site, "systemctl is-active caddy", check=False).strip() == "active", within_s=60)
    assert not on(site, "nft list tables | grep minipc_replaced", check=False)
