"""A service of another shape: quoted tables, a second schema, extensions, and volumes whose names are hostile."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from minipc.core.paths import ROOT
from minipc.core.variables import SERVICES_VARIABLE
from tests.lab.conftest import Pair, converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]
DEPLOYS = ("repositories", "volumes", "postgres", "backups")
SQL = "runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d odd"
VOLUME = "/srv/minipc/volumes/odd/uploads"
AS_SERVICE = "setpriv --reuid=1000 --regid=1000 --clear-groups"
SERVICE = """\
image: example.org/odd
user: 1000
processes:
  web: {port: 8080}
postgres:
  database: odd
  extensions: [{name: citext}]
volumes:
  uploads: {mount: /data, size_gb: 1, data_class: must recover, sqlite: ["*.sqlite3"]}
data_classes:
  must recover:
    Users: createdAt
    billing.invoices:
drill:
  - {name: there are users, sql: 'SELECT count(*) FROM public."Users"', expect: ">= 2"}
"""
# As the owner role would: the objects are its own.
TABLES = """
SET ROLE odd_owner;
CREATE TABLE "Users" (id int PRIMARY KEY, name citext, "createdAt" timestamptz DEFAULT now());
CREATE SCHEMA billing;
CREATE TABLE billing.invoices (id int);
CREATE TABLE "weird ""name; DROP" (id int);
INSERT INTO "Users" VALUES (1, 'a'), (2, 'b'), (3, 'c');
INSERT INTO billing.invoices VALUES (1), (2);
"""
FILES = """
import os, sqlite3
os.makedirs("sub/dir")
for name in ("sub/dir/file", "-rf", "new\\nline", b"b\\xff.bin", "*.db [x] $(id)", "empty"):
    with open(name, "wb") as file:
        file.write(b"" if name == "empty" else os.urandom(100_000))
for name, target in (("link", "/etc/shadow"), ("folder", "/etc"), ("evil.sqlite3", "/etc/passwd")):
    os.symlink(target, name)
os.mkfifo("pipe")
database = sqlite3.connect("sub/app.sqlite3")
database.execute("PRAGMA journal_mode = wal")
database.execute("CREATE TABLE t (x)")
database.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(5000)])
database.commit()
"""
# A connection that never writes its log back: what is in the main file alone is old.
WRITER = """
import sqlite3, time
database = sqlite3.connect("sub/app.sqlite3")
database.execute("PRAGMA wal_autocheckpoint = 0")
while True:
    database.execute("INSERT INTO t VALUES (1)")
    database.commit()
    time.sleep(0.05)
"""
COUNT = "import sqlite3; print(sqlite3.connect('sub/app.sqlite3').execute('SELECT count(*) FROM t').fetchone()[0])"


@pytest.fixture(scope="module")
def odd(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Add the service to the machines; remove it afterwards."""
    folder = tmp_path_factory.mktemp("services")
    (folder / "odd.yaml").write_text(SERVICE)
    env = {SERVICES_VARIABLE: f"{ROOT / 'examples/parking/services'}:{folder}"}
    run("minipc", "secrets", "init", "--inventory", "lab", env=env)
    done = converge(pair.mini, *DEPLOYS, env=env)
    assert done.code == 0, done.output
    on(pair.mini, f"cd / && {SQL} <<'EOF'\n{TABLES}\nEOF")
    on(pair.mini, f"cd {VOLUME} && {AS_SERVICE} python3 - <<'EOF'\n{FILES}\nEOF")
    on(pair.mini, f"systemd-run -q --unit=odd-writer --working-directory={VOLUME} {AS_SERVICE} python3 -c '{WRITER}'")
    try:
        yield pair
    finally:
        on(pair.mini, "systemctl stop odd-writer; systemctl reset-failed", check=False)
        on(pair.mini, "cd / && runuser -u postgres -- dropdb --force odd; rm -rf /srv/minipc/volumes/odd", check=False)
        assert converge(pair.mini, *DEPLOYS).code == 0


def drill(mini):
    """Run the program. Returns its exit code and result."""
    text = on(mini, "/usr/local/lib/minipc/drill 1 >/run/drill.log 2>&1; echo $?; cat /var/lib/minipc/drills/last.json")
    code, _, result = text.partition("\n")
    return int(code), json.loads(result)


def back_up(mini):
    """Back up files and volumes. Returns the outcome of the volume."""
    on(mini, "systemctl start minipc-backup@files", check=False, timeout_s=200)
    return json.loads(on(mini, "cat /var/lib/minipc/backups/outcomes.json"))["volume:odd/uploads"]


def test_its_roles_have_their_rights_in_every_schema(odd):
    """The runtime role reads and writes rows of all tables, and changes none; the reader only reads."""
    ask = f"cd / && {SQL} -c"
    rights = "has_schema_privilege('{0}', 'billing', 'USAGE'), has_schema_privilege('{0}', 'billing', 'CREATE'), "
    rights += "has_table_privilege('{0}', 'billing.invoices', 'INSERT')"
    assert on(odd.mini, f'{ask} "SELECT {rights.format("odd")}"').strip() == "t|f|t"
    assert on(odd.mini, f'{ask} "SELECT {rights.format("odd_reader")}"').strip() == "t|f|f"


def test_the_drill_counts_its_tables_names_the_others_and_compares_its_files(odd):
    outcome = back_up(odd.mini)
    assert outcome["success"], outcome["error"]
    code, result = drill(odd.mini)
    assert code == 0, result["reason"]
    (counted,) = [each for each in result["classes"] if each["service"] == "odd"]
    assert (counted["name"], counted["rows"]) == ("must recover", 5)
    gaps = {each["what"]: each["why"] for each in result["not_exercised"]}
    assert 'weird "name; DROP' in gaps["odd: tables in no data class"]
    assert "odd: migrations on the restored database" in gaps
    (volume,) = [each for each in result["volumes"] if each["service"] == "odd"]
    assert (volume["files"], volume["found"], volume["problem"]) == (7, 7, "")


# Damages a file between the manifest and the snapshot, and leaves its time as it was.
RESTIC = f"""#!/bin/sh
case " $* " in *" backup "*volume:odd/uploads*)
    cp -a {VOLUME}/sub/dir/file /run/kept-file
    printf damaged | dd of={VOLUME}/sub/dir/file conv=notrunc status=none
    touch -r /run/kept-file {VOLUME}/sub/dir/file;;
esac
exec /usr/bin/restic "$@"
"""


def test_a_file_with_other_content_and_the_same_time_fails_the_drill(odd):
    on(odd.mini, f"install -D -m 755 /dev/stdin /run/odd/restic <<'END'\n{RESTIC}\nEND")
    try:
        on(odd.mini, "PATH=/run/odd:$PATH /usr/local/lib/minipc/backup files", timeout_s=200)
        code, result = drill(odd.mini)
    finally:
        on(odd.mini, f"rm -r /run/odd; cp -a /run/kept-file {VOLUME}/sub/dir/file")
        assert back_up(odd.mini)["success"]
    assert code == 1, result
    assert "odd/uploads: the files of the volume are in its backup: sub/dir/file has other content" in result["reason"]


def test_a_sqlite_file_that_cannot_be_copied_is_told_and_costs_no_snapshot(odd):
    on(odd.mini, f"{AS_SERVICE} sh -c 'head -c 9999 /dev/urandom > {VOLUME}/broken.sqlite3'")
    try:
        outcome = back_up(odd.mini)
    finally:
        on(odd.mini, f"rm {VOLUME}/broken.sqlite3")
    assert not outcome["success"]
    assert "was taken, but" in outcome["error"]
    assert "broken.sqlite3" in outcome["error"]
    assert back_up(odd.mini)["success"]


def test_it_comes_back_with_a_restore(odd):
    """Names, links and a SQLite file that was written to until the backup."""
    on(odd.mini, "systemctl stop odd-writer")
    rows = on(odd.mini, f'cd {VOLUME} && {AS_SERVICE} python3 -c "{COUNT}"')
    assert back_up(odd.mini)["success"]
    listing = f"cd {VOLUME} && find . ! -name '*-wal' ! -name '*-shm' ! -type d -printf '%p %U %y %l\\n' | sort"
    before = on(odd.mini, listing)
    on(odd.mini, f"rm -rf {VOLUME} /var/lib/minipc/backups/volumes.json")
    told = on(odd.mini, "/usr/local/lib/minipc/restore-volumes odd/uploads")
    assert "7 of 7 files" in told, told
    assert on(odd.mini, listing) == before
    assert on(odd.mini, f'cd {VOLUME} && {AS_SERVICE} python3 -c "{COUNT}"') == rows
    assert on(odd.mini, f"stat -c '%u %a' {VOLUME}") == "1000 700\n"
    assert "is not empty, left as it is" in on(odd.mini, "/usr/local/lib/minipc/restore-volumes odd/uploads")
