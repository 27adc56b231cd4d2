"""The power of a machine is cut between two archived segments: what users were told is committed comes back."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from minipc.core.environment import LAB
from minipc.secrets.generate import generate
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab.inventory import OFFSITE, entry
from tests.lab.conftest import Done, converge, on

LOST = f"wal-{os.getpid()}"
NEW, OFF = f"{LOST}-2", f"{OFFSITE}{LOST}"
RESTORE = ("--data", "postgres_from_backup=restore")
DATA = "/var/lib/postgresql/17/main"
PSQL = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1"
OWN = f"{PSQL} -U minipc -d minipc"
CHECK = "/usr/local/lib/minipc/wal-stream check 2>&1"
RESTORED = "cat /var/lib/minipc/backups/restore.json"
FOLDER = "/srv/minipc-offsite/sftp/wal"
WRITE_S = 20
# psql prints a number when the server has confirmed the commit.
INSERT = "INSERT INTO acknowledged VALUES ($n) RETURNING n;"
WRITER = f'n=0; while :; do n=$((n+1)); echo "{INSERT}"; sleep 0.005; done | {{ {OWN}; }}'


@dataclass
class Users:
    """Rows that were acknowledged to somebody who is not on the machine: number -> when, epoch seconds."""

    process: subprocess.Popen[str]
    seen: dict[int, float] = field(default_factory=dict)

    def listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip().isdecimal():
                self.seen[int(line)] = time.time()


def enrol(name: str) -> lab.Machine:
    machine = lab.up(name)
    adopt(LAB, entry(machine), machine.host_key_fingerprint)
    return machine


def done(result: Done) -> Done:
    assert result.code == 0, result.output[-4000:]
    return result


def is_off_site(machine: lab.Machine) -> bool:
    """Return whether the off-site host has what the machine has written, unless its segment is archived."""
    said = on(machine, CHECK, check=False)
    return "the off-site host has the" in said or "is archived" in said


@pytest.fixture(scope="module")
def pair(lab_ready: None) -> Iterator[tuple[lab.Machine, lab.Machine]]:
    """Converge a machine with a database, and its off-site host."""
    lab.down([LOST, NEW, OFF])
    generate("lab")
    try:
        offsite, mini = enrol(OFF), enrol(LOST)
        done(converge(offsite, "host", "firewall", "offsite"))
        done(converge(mini, "host", "repositories", "volumes", "postgres", "backups"))
        yield mini, offsite
    finally:
        lab.down([LOST, NEW, OFF])


@pytest.fixture(scope="module")
def restored(pair: tuple[lab.Machine, lab.Machine]) -> tuple[Users, lab.Machine]:
    """Write for some seconds after a backup, cut the power, and restore on another machine."""
    mini, offsite = pair
    on(mini, f"{OWN} -c 'CREATE TABLE acknowledged (n int)' -c 'CREATE TABLE filler (t text)'")
    # The converge has taken a backup. From here on nothing is archived; some segments become complete.
    on(mini, "cd / && runuser -u postgres -- pgbackrest --stanza=main stop")
    on(mini, f'{OWN} -c "INSERT INTO filler SELECT repeat(md5(n::text), 9) FROM generate_series(1, 120000) n"')

    # The off-site host is away for a while, and comes back without what it had received.
    on(offsite, "systemctl stop minipc-sftp")
    on(mini, f"{OWN} -c 'INSERT INTO filler VALUES (1)'; sleep 7")
    assert not is_off_site(mini)
    on(offsite, f"rm -f {FOLDER}/*; systemctl start minipc-sftp")
    assert is_off_site(mini)

    archived = on(mini, f"{PSQL} -d postgres -c 'SELECT last_archived_wal FROM pg_stat_archiver'")
    users = Users(
        subprocess.Popen([*lab.ssh_command(mini), WRITER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    )
    thread = threading.Thread(target=users.listen)
    thread.start()
    time.sleep(WRITE_S)
    assert on(mini, f"{PSQL} -d postgres -c 'SELECT last_archived_wal FROM pg_stat_archiver'") == archived
    lab.power_off(mini)
    users.process.kill()
    thread.join(timeout=60)
    new = enrol(NEW)
    done(converge(new, "host", "repositories", "volumes", "postgres", options=RESTORE))
    return users, new


@pytest.mark.timeout(900)
def test_what_was_acknowledged_seconds_ago_comes_back(restored):
    users, new = restored
    rows = {int(row) for row in on(new, f"{OWN} -c 'SELECT n FROM acknowledged'").split()}
    last, kept = max(users.seen), max(rows & users.seen.keys())
    missing = [n for n in users.seen if n <= kept and n not in rows]
    print(
        f"\n{len(users.seen)} rows were acknowledged in {users.seen[last] - users.seen[1]:.1f} s, none was archived; "
        f"{last - kept} are lost, of the last {users.seen[last] - users.seen[kept]:.3f} s"
    )
    assert not missing, "only the newest may be lost"
    outcome = json.loads(on(new, RESTORED))
    assert outcome["received"]
    assert outcome["not_received"] == ""


def test_what_was_restored_is_in_the_archive(restored):
    """A restore from the backup before the loss needs it."""
    _, new = restored
    received = json.loads(on(new, RESTORED))["received"]
    whole = [name for name, length in received.items() if length == 16 * 1024**2]
    assert whole
    listed = on(new, "cd / && runuser -u postgres -- pgbackrest --repo=2 repo-ls --recurse archive/main")
    assert [name for name in whole if name not in listed] == []
    assert on(new, "ls -d /var/lib/postgresql/minipc-wal-* 2>/dev/null || true") == ""


@pytest.mark.timeout(400)
def test_a_new_timeline_with_a_torn_end_is_restored_before_any_of_it_is_archived(pair, restored):
    _, offsite = pair
    _, new = restored
    on(new, f"{OWN} -c 'INSERT INTO filler SELECT 7 FROM generate_series(1, 1000)'")
    assert is_off_site(new)
    on(new, f"sleep 1; {OWN} -c \"INSERT INTO filler VALUES ('torn')\"")
    assert is_off_site(new)
    on(new, "systemctl stop minipc-wal-stream")
    timelines = on(offsite, f"ls {FOLDER} | cut -c 1-8 | sort -u").split()
    assert timelines == ["00000001", "00000002"], "what the lost machine sent is kept"
    on(offsite, f"truncate -s -1 $(ls -t {FOLDER}/00000002* | head -n 1)")
    on(new, f"systemctl kill -s KILL postgresql@17-main; systemctl stop postgresql@17-main; rm -rf {DATA}")
    done(converge(new, "repositories", "postgres", options=RESTORE))
    assert max(json.loads(on(new, RESTORED))["received"]).startswith("00000002")
    assert on(
        new, f"{OWN} -c \"SELECT count(*) FILTER (WHERE t = '7'), count(*) FILTER (WHERE t = 'torn') FROM filler\""
    ) == ("1000|0\n")
    assert is_off_site(new)
