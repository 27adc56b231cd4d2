"""The restore drill: it passes on good backups, goes red for each thing that can be wrong, and touches nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minipc.evidence.records import load
from tests.lab.conftest import converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]
SETTINGS = "/etc/minipc/backups/drill.json"
REPOSITORY = "/var/lib/pgbackrest"


def drill(mini, repo):
    """Exit code of the program on the machine, and what it wrote."""
    told = on(
        mini, f"/usr/local/lib/minipc/drill {repo} >/run/drill.log 2>&1; echo $?; cat /var/lib/minipc/drills/last.json"
    )
    code, _, result = told.partition("\n")
    return int(code), json.loads(result)


@contextmanager
def kept(mini, path) -> Iterator[None]:
    """A file that is as it was afterwards."""
    on(mini, f"cp -a {path} /run/kept-file")
    try:
        yield
    finally:
        on(mini, f"cp -a /run/kept-file {path}")


def leftovers(mini):
    return on(
        mini, "ls -d /var/lib/postgresql/minipc-drill 2>/dev/null; pgrep -f '[m]inipc-drill/data' || true"
    ).strip()


def timelines(pair):
    """The history files and the timelines of the segments in both repositories."""
    found = []
    for machine, path in ((pair.mini, REPOSITORY), (pair.offsite, "/srv/minipc-offsite/sftp/pgbackrest")):
        names = on(machine, f"find {path}/archive -type f -name '0*' -printf '%f\\n'").split()
        assert names
        found.append({name if name.endswith(".history") else name[:8] for name in names})
    return found


@pytest.mark.parametrize("repo", [1, 2])
def test_it_passes_and_leaves_a_record_a_metric_and_nothing_else(pair, repo):
    before = timelines(pair)
    done = run("minipc", "drill", "--repo", str(repo), "--inventory", "lab", "--host", pair.mini.name, timeout_s=200)
    assert done.code == 0, done.output
    path = Path(done.output.split("Record")[1].split()[0])
    record = load(path)
    assert (record.kind, record.verdict) == ("drill", "pass")
    assert [phase.name for phase in record.phases] == [
        "preflight", "canaries", "archive", "restore", "recover", "migrate", "questions", "amcheck", "volumes",
    ]  # fmt: skip
    assert record.data_classes[0].name == "must recover"
    assert record.rpo_seconds is not None
    metrics = on(pair.mini, "cat /var/lib/prometheus/node-exporter/minipc_drill.prom")
    assert f'minipc_drill_verdict{{repo="repo{repo}",verdict="pass"}} 1' in metrics
    assert leftovers(pair.mini) == ""
    # The timeline trap: a drill that archived would leave its history, and the next real restore would follow it.
    assert timelines(pair) == before


def test_a_plain_restore_afterwards_gives_mains_rows(pair):
    """What main wrote after the drill is there, and what the drill's own timeline got is not."""
    stamp = "INSERT INTO canary (drill, name) VALUES ('after', 'main')"
    on(pair.mini, f'runuser -u postgres -- psql -Xqd minipc -c "{stamp}" -c "SELECT pg_switch_wal()" >/dev/null')
    on(pair.mini, "runuser -u postgres -- pgbackrest --stanza=main check", timeout_s=240)
    scratch = "/var/lib/postgresql/plain"
    options = f"--stanza=main --pg1-path={scratch} --archive-mode=off"
    start = f"-D {scratch} -l {scratch}/log -w -s -o '-c config_file={scratch}/c -c data_directory={scratch}'"
    script = f"""set -e
    cd /; install -d -o postgres -m 700 {scratch}
    runuser -u postgres -- pgbackrest {options} restore
    printf '%s\\n' "port = 5498" "unix_socket_directories = '{scratch}'" "listen_addresses = ''" \\
        "hba_file = '{scratch}/h'" "max_connections = 1000" "max_worker_processes = 64" > {scratch}/c
    echo 'local all all peer' > {scratch}/h; chown -R postgres: {scratch}
    runuser -u postgres -- /usr/lib/postgresql/17/bin/pg_ctl start {start}
    ask() {{ runuser -u postgres -- psql -XAtqh {scratch} -p 5498 -d minipc -c "$1"; }}
    for i in $(seq 100); do [ "$(ask 'SELECT pg_is_in_recovery()')" = f ] && break; sleep 0.2; done
    ask "SELECT name FROM canary WHERE drill = 'after'"
    """
    try:
        assert on(pair.mini, script) == "main\n"
    finally:
        stop = f"runuser -u postgres -- /usr/lib/postgresql/17/bin/pg_ctl stop -D {scratch} -m immediate -s"
        on(pair.mini, f"cd /; {stop}; rm -rf {scratch}", check=False)


def test_it_never_runs_twice(pair):
    hold = "flock /var/lib/minipc/backups/drill.lock sh -c 'touch /run/holding; sleep 8' &"
    wait = "while ! [ -e /run/holding ]; do sleep 0.1; done"
    told = on(pair.mini, f"({hold} {wait}; /usr/local/lib/minipc/drill 1 2>&1; echo exit $?) </dev/null")
    assert "another drill is running" in told
    assert "exit 4" in told


def test_a_killed_drill_leaves_nothing_that_stops_the_next_one(pair):
    script = """
    systemctl start --no-block minipc-drill@1
    for i in $(seq 300); do [ -e /var/lib/postgresql/minipc-drill/data/postmaster.pid ] && break; sleep 0.1; done
    systemctl kill -s KILL minipc-drill@1; sleep 1
    ls /var/lib/postgresql/minipc-drill
    """
    assert "data" in on(pair.mini, script)
    code, result = drill(pair.mini, 1)
    assert (code, result["verdict"]) == (0, "pass"), result["reason"]
    assert leftovers(pair.mini) == ""
    on(pair.mini, "systemctl reset-failed")


# --- faults: each has its verdict and its reason --------------------------------------------------------------------


def changed(mini, change):
    """The drill's settings with a change, a Python statement on `s`."""
    program = f"import json; s = json.load(open('{SETTINGS}')); {change}; json.dump(s, open('{SETTINGS}', 'w'))"
    on(mini, f'python3 -c "{program}"')


def test_a_wrong_answer_fails_it(pair):
    with kept(pair.mini, SETTINGS):
        changed(pair.mini, "[e for e in s['services'] if e['queries']][0]['queries'][0]['expect'] = '== 4711'")
        code, result = drill(pair.mini, 1)
    assert (code, result["verdict"]) == (1, "fail")
    assert "expected == 4711" in result["reason"]
    assert leftovers(pair.mini) == ""


def test_too_small_a_disk_is_no_verdict(pair):
    with kept(pair.mini, SETTINGS):
        changed(pair.mini, "s['margin_mb'] = 10**9")
        code, result = drill(pair.mini, 1)
    assert (code, result["verdict"]) == (4, "could-not-verify")
    assert "disk too small" in result["reason"]


def test_an_unreachable_repository_is_no_verdict(pair):
    on(pair.offsite, "systemctl stop minipc-sftp")
    try:
        code, result = drill(pair.mini, 2)
    finally:
        on(pair.offsite, "systemctl start minipc-sftp")
    assert (code, result["verdict"]) == (4, "could-not-verify"), result
    assert "repo2 can't be reached" in result["reason"]


def test_a_wrong_passphrase_fails_it(pair):
    conf = "/etc/pgbackrest/pgbackrest.conf"
    with kept(pair.mini, conf):
        on(pair.mini, f"sed -i 's/^repo1-cipher-pass=.*/repo1-cipher-pass=wrong/' {conf}")
        code, result = drill(pair.mini, 1)
    assert (code, result["verdict"]) == (1, "fail"), result
    assert "repo1 can't be decrypted: the passphrase is wrong" in result["reason"]


def test_a_missing_wal_segment_fails_it(pair):
    """The segments after the newest backup are gone from repo1 while the drill restores."""
    psql = "runuser -u postgres -- psql -Xq"
    on(pair.mini, f"{psql} -c 'CREATE TABLE gap ()' -c 'SELECT pg_switch_wal()' -c 'DROP TABLE gap'")
    on(pair.mini, "runuser -u postgres -- pgbackrest --stanza=main check")
    newest = f"ls -d {REPOSITORY}/archive/main/17-*/*/0000*-*.zst | sort | tail -n 1"
    path = on(pair.mini, newest).strip()
    on(pair.mini, f"mv {path} /run/kept-segment")
    try:
        code, result = drill(pair.mini, 1)
    finally:
        on(pair.mini, f"cp /run/kept-segment {path} && chown postgres: {path} && chmod 640 {path}")
    assert (code, result["verdict"]) == (1, "fail"), result
    assert [phase["name"] for phase in result["phases"]][-1] == "recover"
    assert leftovers(pair.mini) == ""


def test_a_damaged_backup_fails_it(pair):
    on(pair.mini, "systemctl start minipc-backup@full")
    newest = on(pair.mini, f"ls {REPOSITORY}/backup/main | grep 'F$' | tail -n 1").strip()
    bundle = on(pair.mini, f"ls -S {REPOSITORY}/backup/main/{newest}/bundle/* | head -n 1").strip()
    with kept(pair.mini, bundle):
        on(pair.mini, f"printf damaged | dd of={bundle} bs=1 seek=20000 conv=notrunc status=none")
        code, result = drill(pair.mini, 1)
    assert (code, result["verdict"]) == (1, "fail"), result
    assert [phase["name"] for phase in result["phases"]][-1] == "restore"
    assert leftovers(pair.mini) == ""


def test_results_are_off_site_and_come_back_with_a_rebuild(pair):
    """The last drill's result went off-site by itself; a machine without any gets all of them again, once."""
    results, marker = "/var/lib/minipc/drills", "/var/lib/minipc/backups/state.json"
    on(pair.mini, "systemctl start minipc-drill@1.service; systemctl start minipc-backup@files.service")
    before = on(pair.mini, f"cd {results} && sha256sum *")
    on(pair.mini, f"rm -rf /root/drills.kept; cp -a {results} /root/drills.kept; rm -f {results}/* {marker}")
    restore = ("--data", "postgres_from_backup=restore")
    try:
        done = converge(pair.mini, "backups", options=restore)
        assert done.code == 0, done.output
        assert on(pair.mini, f"cd {results} && sha256sum *") == before
        assert "minipc_drill_last_pass" in on(pair.mini, "cat /var/lib/prometheus/node-exporter/minipc_drill.prom")
        on(pair.mini, f"rm -f {results}/*")
        assert converge(pair.mini, "backups", options=restore).code == 0
        assert on(pair.mini, f"ls {results}") == "", "asked once; what was removed since stays removed"
    finally:
        on(pair.mini, f"cp -a /root/drills.kept/. {results}/; rm -rf /root/drills.kept")
