"""Whoever has the mini PC deletes what can be deleted with its credentials. The data comes back all the same."""

from __future__ import annotations

import json

import pytest

from tests.lab.conftest import on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]
SQL = "runuser -u postgres -- psql -XAtq"
HOME = "/srv/minipc-offsite"
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


def test_the_next_copy_notices_and_keeps_the_earlier_ones(pair, wiped):
    before = set(on(pair.offsite, f"ls {HOME}/copies").split())
    on(pair.offsite, "sleep 1; systemctl start minipc-offsite-copy", check=False)
    assert "HAS LOST its newest backup" in on(pair.offsite, "journalctl -u minipc-offsite-copy -o cat -n 20")
    assert on(pair.offsite, "systemctl is-failed minipc-offsite-copy", check=False).strip() == "failed"
    assert before <= set(on(pair.offsite, f"ls {HOME}/copies").split())
    on(pair.offsite, "systemctl reset-failed")


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
