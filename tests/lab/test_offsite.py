"""Whoever has the mini PC deletes what can be deleted with its credentials. The data comes back all the same."""

from __future__ import annotations

import json

import pytest

from tests.lab.conftest import on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]
SQL = "runuser -u postgres -- psql -XAtq"
HOME = "/srv/minipc-offsite"
COPY = "/usr/local/lib/minipc/offsite-copy"
PGBACKREST = "runuser -u postgres -- pgbackrest --stanza=main"
ETC = "/etc/minipc/backups"
RESTIC = (
    f"restic --repository-file {ETC}/restic.repository --password-file {ETC}/restic.password "
    f"--cacert {ETC}/offsite.crt --no-cache"
)
SFTP = (
    "sftp -q -b - -P 2222 -oIdentityFile=/run/stolen -oUserKnownHostsFile=/etc/pgbackrest/known_hosts "
    "-oStrictHostKeyChecking=yes minipc-sftp@{address}"
)


@pytest.fixture(scope="module")
def wiped(pair):
    """The rows that were written before, and what is left after everything that can be deleted was deleted."""
    mini, offsite = pair.mini, pair.offsite
    on(
        mini,
        f"{SQL} -c 'DROP TABLE IF EXISTS precious' -c 'CREATE TABLE precious AS SELECT generate_series(1, 3) AS n'",
    )
    done = run("minipc", "backup", "now", "--inventory", "lab", "--host", mini.name, timeout_s=200)
    assert done.code == 0, done.output
    on(mini, f"{PGBACKREST} check", timeout_s=180)
    on(offsite, "systemctl start minipc-offsite-copy")
    snapshots = on(mini, f"{RESTIC} snapshots --json").count("short_id")
    assert snapshots

    # Everything the machine itself is able to do, as root on it.
    on(mini, f"{RESTIC} forget --keep-last 1 --prune --unsafe-allow-remove-all --keep-tag none", check=False)
    for each in on(mini, f"{RESTIC} list snapshots").split():
        on(mini, f"{RESTIC} forget {each}", check=False)
    on(mini, "install -m 600 /etc/pgbackrest/sftp_key /run/stolen")
    address = offsite.public_ipv4
    listing = on(offsite, f"cd {HOME}/sftp && find pgbackrest -mindepth 1 -depth -printf '%y /%p\\n'").splitlines()
    batch = [f"-{'rmdir' if line[0] == 'd' else 'rm'} {line[2:]}" for line in listing]
    batch += [
        "-rm /pgbackrest/../../copies/*",
        "-rename /pgbackrest /gone",
        "-rm /../../../etc/minipc/offsite/host_key",
    ]
    script = "\n".join(batch)
    on(mini, f"{SFTP.format(address=address)} <<'END'\n{script}\nEND\n", check=False)
    return snapshots


def test_what_could_be_deleted_is_deleted(pair, wiped):
    assert on(pair.offsite, f"find {HOME}/sftp/pgbackrest -name '*.info' -o -name '*.manifest'") == ""


def test_restic_kept_every_snapshot(pair, wiped):
    assert on(pair.mini, f"{RESTIC} snapshots --json").count("short_id") == wiped
    on(pair.mini, f"{RESTIC} check", timeout_s=180)
    assert on(pair.mini, f"{RESTIC} dump latest /etc/minipc/identity") == on(pair.mini, "cat /etc/minipc/identity")


def copy_now(offsite) -> str:
    """Takes a copy; what the run said."""
    cursor = "journalctl -n 0 -u minipc-offsite-copy --show-cursor | sed -n 's/^-- cursor: //p'"
    script = f"c=$({cursor}); sleep 1; systemctl start minipc-offsite-copy; "
    return on(offsite, script + 'journalctl -u minipc-offsite-copy -o cat ${c:+--after-cursor="$c"}', check=False)


def copied(offsite, pattern="*Z") -> set[str]:
    return set(on(offsite, f"cd {HOME}/copies && ls -d 2{pattern} 2>/dev/null || true").split())


# Copies, so that there is no gap of two weeks: nothing expires after one.
BETWEEN = [f"$(date -u -d '{days} days ago' +%Y-%m-%dT%H-%M-%SZ)" for days in (20, 10)]


def fails(offsite) -> bool:
    return on(offsite, "systemctl is-failed minipc-offsite-copy", check=False).strip() == "failed"


def test_every_run_from_now_on_notices_and_keeps_the_earlier_ones(pair, wiped):
    """Nothing is left at all. One of the copies is old enough to go, and stays."""
    old = "2020-01-01T00-00-00Z"
    for name in (old, *BETWEEN):
        on(pair.offsite, f"cp -al $(ls -d {HOME}/copies/2*Z | tail -n 1) {HOME}/copies/{name}")
    before = copied(pair.offsite)
    for _ in range(3):
        said = copy_now(pair.offsite)
        assert "THE REPOSITORY HAS LOST DATA: its newest backup" in said, said
        assert "offsite-copy --accept" in said
        assert fails(pair.offsite)
        assert copied(pair.offsite) == before


def test_a_backup_of_the_future_hides_nothing(pair, wiped):
    fake = f"{HOME}/sftp/pgbackrest/backup/main/29991231-235959F"
    on(pair.offsite, f"mkdir -p {fake} && echo x > {fake}/backup.manifest")
    try:
        assert "HAS LOST DATA" in copy_now(pair.offsite)
        told = on(pair.offsite, f"{COPY} --accept 2>&1; echo exit $?")
        assert "29991231-235959F" in told
        assert told.endswith("exit 1\n")
    finally:
        on(pair.offsite, f"rm -rf {HOME}/sftp/pgbackrest/backup/main/29991231-235959F")


def test_the_copy_put_back_is_a_database_again(pair, wiped):
    """From what the wipe could not reach: the drill restores from repo2 alone and finds the rows."""
    on(pair.offsite, "/usr/local/lib/minipc/offsite-restore-copy")
    question = {"name": "precious", "database": "postgres", "sql": "SELECT sum(n) FROM precious", "expect": "== 6"}
    settings = json.loads(on(pair.mini, f"cat {ETC}/drill.json"))
    settings["queries"].append(question)
    on(pair.mini, f"cp -a {ETC}/drill.json /run/kept && cat > {ETC}/drill.json <<'END'\n{json.dumps(settings)}\nEND\n")
    try:
        told = on(pair.mini, "/usr/local/lib/minipc/drill 2 2>&1; echo exit $?", timeout_s=200)
    finally:
        on(pair.mini, f"cp -a /run/kept {ETC}/drill.json; {SQL} -c 'DROP TABLE precious'")
        on(pair.offsite, f"rm -rf {HOME}/copies/aside-*")
    assert told.endswith("exit 0\n"), told
    on(pair.mini, f"{PGBACKREST} check", timeout_s=240)


def test_only_the_operator_ends_the_alarm(pair, wiped):
    """All is there again; it is an alarm until somebody says that it is as it should be. Then what is old goes."""
    assert "HAS LOST DATA" in copy_now(pair.offsite)
    assert "accepted:" in on(pair.offsite, f"{COPY} --accept")
    said = copy_now(pair.offsite)
    assert "newest backup" in said, said
    assert not fails(pair.offsite)
    assert "2020-01-01T00-00-00Z" not in copied(pair.offsite)
    assert copied(pair.offsite, "*-suspect"), "what was copied meanwhile stays for its time"


@pytest.mark.parametrize(
    ("taken", "told"),
    [("archive", "WAL: "), ("backup/main/*/pg_data", "files of backups: "), ("backup", "newest backup")],
)
def test_a_part_that_is_gone_is_noticed_twice(pair, wiped, taken, told):
    repository, aside = f"{HOME}/sftp/pgbackrest", f"{HOME}/sftp/aside"
    on(pair.offsite, f"cp -a {repository} {aside} && rm -rf {repository}/{taken}")
    try:
        for _ in range(2):
            assert told in copy_now(pair.offsite)
            assert fails(pair.offsite)
    finally:
        on(pair.offsite, f"cp -a {aside}/. {repository}/ && rm -rf {aside} && {COPY} --accept")
    assert "HAS LOST DATA" not in copy_now(pair.offsite)
    assert not fails(pair.offsite)


def test_a_full_disk_is_left_to_the_repository_and_heals(pair, wiped):
    """The copies live on a small disk for a while: what has expired goes first, and nothing half made stays."""
    folder, old = f"{HOME}/copies", "2020-01-01T00-00-00Z"
    on(pair.offsite, f"rm -rf {folder}/*-suspect; mount -t tmpfs -o size=300m tmpfs {folder}")
    # No floor: the disk itself is what ends it.
    unlimited = "mkdir -p /run/systemd/system/minipc-offsite-copy.service.d && "
    unlimited += f"printf '[Service]\nExecStart=\nExecStart={COPY} 30 30 0\n' > "
    unlimited += "/run/systemd/system/minipc-offsite-copy.service.d/test.conf && systemctl daemon-reload"
    try:
        assert "not enough disk space: " in copy_now(pair.offsite), "2 GB are the repository's to grow"
        on(pair.offsite, unlimited)
        assert "copied to" in copy_now(pair.offsite)
        on(
            pair.offsite,
            f"cd {folder}; mkdir {old} {' '.join(BETWEEN)}; head -c 1G /dev/zero > {folder}/{old}/filler",
            check=False,
        )
        on(pair.offsite, f"head -c 1M /dev/urandom > {HOME}/sftp/pgbackrest/another; df {folder} | grep -q '100%'")
        said = copy_now(pair.offsite)
        assert f"removed {folder}/{old}" in said, said
        assert "copied to" in said

        on(pair.offsite, f"head -c 1G /dev/zero > {folder}/filler", check=False)
        on(pair.offsite, f"head -c 1M /dev/urandom > {HOME}/sftp/pgbackrest/another")
        assert "not enough disk space: " in copy_now(pair.offsite)
        assert fails(pair.offsite)
        assert on(pair.offsite, f"ls -d {folder}/.new 2>/dev/null || true") == ""
        on(pair.offsite, f"rm {folder}/filler")
        assert "copied to" in copy_now(pair.offsite)
    finally:
        on(pair.offsite, "rm -rf /run/systemd/system/minipc-offsite-copy.service.d; systemctl daemon-reload")
        on(pair.offsite, f"umount {folder}; rm -f {HOME}/sftp/pgbackrest/another; systemctl reset-failed")
    assert "copied to" in copy_now(pair.offsite)
    assert not fails(pair.offsite)
