"""Test a compromised service: nothing that it leaves in its database or in a backup is executed.

The attacker has both passwords of the service: the running service's, and the one of the role that owns the tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from minipc import config
from minipc.secrets import open_store
from minipc.secrets.catalogue import postgres_password, redis_password
from tests.lab.conftest import converge, on, run

pytestmark = pytest.mark.timeout(600)
LOG = "/var/log/postgresql/postgresql-17-main.log"
DATA = "/var/lib/postgresql/17/main"
OWNED = "/var/lib/postgresql/OWNED"
SETTINGS = config.load("lab")
SERVICE = next(each for each in SETTINGS.services.declared if each.postgres and each.redis and each.drill)
DATABASE = next(
    each for each in SETTINGS.postgres.databases if SERVICE.postgres and each.name == SERVICE.postgres.database
)
# What our programs read: the tables of the drill's questions, and of the counts.
ASKED = str(re.findall(r"FROM (\w+)", SERVICE.drill[0].sql)[0])
COUNTED = [table for tables in SERVICE.data_classes.values() for table in tables]
READ = tuple(dict.fromkeys([ASKED, *COUNTED[:3], COUNTED[-1]]))

# The log tells who ran it. In the drill's scratch cluster, whose log is removed, the error tells the drill.
PEEK = f"""
CREATE FUNCTION public.peek(told boolean DEFAULT false) RETURNS boolean LANGUAGE plpgsql AS $f$
DECLARE strong boolean;
BEGIN
  BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'SET SESSION AUTHORIZATION DEFAULT'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE $x$COPY (SELECT 1) TO PROGRAM 'id >> {OWNED}'$x$; EXCEPTION WHEN OTHERS THEN NULL; END;
  SELECT rolsuper INTO strong FROM pg_roles WHERE rolname = current_user;
  RAISE LOG 'peek: as %, superuser %', current_user, strong;
  IF told AND current_setting('cluster_name') = 'minipc-drill' AND session_user <> '{DATABASE.owner}' THEN
    RAISE EXCEPTION 'peek: asked by %, superuser %', session_user, strong;
  END IF;
  RETURN true;
END $f$;
CREATE FUNCTION public.peek_at(word text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $f$
BEGIN PERFORM public.peek(); RETURN word; END $f$;
CREATE TABLE public.bait (word text);
INSERT INTO public.bait SELECT n::text FROM generate_series(1, 100) n;
CREATE INDEX ON public.bait (public.peek_at(word));
CREATE STATISTICS public.bait_statistics ON public.peek_at(word), (word || 'x') FROM public.bait;
CREATE POLICY peek ON public.bait USING (public.peek());
ALTER TABLE public.bait ENABLE ROW LEVEL SECURITY;
"""
VIEWS = "".join(
    f"ALTER TABLE public.{name} RENAME TO {name}_real;\n"
    f"CREATE VIEW public.{name} AS SELECT * FROM public.{name}_real WHERE public.peek();\n"
    for name in READ
)
UNDO = (
    "".join(f"DROP VIEW public.{name}; ALTER TABLE public.{name}_real RENAME TO {name};\n" for name in READ)
    + "DROP TABLE public.bait; DROP FUNCTION public.peek_at; DROP FUNCTION public.peek;"
)


CANARIES = "cd / && runuser -u postgres -- psql -XAtqU minipc -c 'SELECT count(*) FROM canary' minipc"
# After a restore that did not come about; after one that did, only the timer.
PUT_BACK = f"""
if [ -d {DATA}.before ]; then systemctl stop postgresql@17-main; rm -rf {DATA}; mv {DATA}.before {DATA}; fi
systemctl start postgresql@17-main minipc-heartbeat.timer
"""


def psql(mini, statements: str, *, owner: bool = False, check: bool = True) -> str:
    """Run SQL as the service, or as the owner of its tables, with the service's own password."""
    role = DATABASE.owner if owner else DATABASE.runtime
    password = open_store("lab").get(postgres_password(role)).reveal()
    login = f"psql -XAtqw -v ON_ERROR_STOP=1 -h {SETTINGS.host.service_address} -U {role} -d {DATABASE.name}"
    return on(mini, f"export PGPASSWORD={password}\n{login} 2>&1 <<'END'\n{statements}\nEND", check=check)


def runners(mini) -> set[tuple[str, str]]:
    """Return which roles have run the planted function, and whether they are superusers."""
    return set(re.findall(r"peek: as (\w+), superuser (\w)", on(mini, f"cat {LOG}")))


def owned(mini) -> str:
    return on(mini, f"cat {OWNED} 2>/dev/null || true")


def drill(mini) -> tuple[int, dict]:
    told = on(
        mini,
        "/usr/local/lib/minipc/drill 1 >/run/drill.log 2>&1; echo $?; cat /var/lib/minipc/drills/last.json",
        timeout_s=300,
    )
    code, _, result = told.partition("\n")
    return int(code), json.loads(result)


@pytest.fixture
def planted(site) -> Iterator[None]:
    """Plant views, an index, statistics and a policy that call a function of the attacker."""
    on(site, f"truncate -s 0 {LOG}; rm -f {OWNED}")
    psql(site, PEEK + VIEWS, owner=True)
    try:
        yield
    finally:
        psql(site, UNDO, owner=True)
        on(site, f"rm -f {OWNED}; systemctl reset-failed")


@pytest.mark.parametrize(
    "statement",
    [
        f"ALTER TABLE {ASKED} RENAME TO {ASKED}_real",
        "CREATE FUNCTION public.peek() RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        f"CREATE TRIGGER peek BEFORE DELETE ON {ASKED} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        f"CREATE TEMPORARY TABLE {ASKED} ()",
        f"DROP TABLE {ASKED}",
        f"TRUNCATE {ASKED}",
        f"SET ROLE {DATABASE.owner}",
        "\\connect postgres",
        "\\connect template1",
        "\\connect minipc",
    ],
)
def test_the_running_service_can_plant_nothing(site, statement):
    said = psql(site, statement, check=False)
    assert re.search("permission denied|must be owner|no pg_hba.conf entry", said), said


def test_what_the_owner_of_the_tables_plants_runs_with_no_more_rights_than_the_service_has(site, planted):
    """It tries status, checks, counts, a converge, PostgreSQL's maintenance, and the drill."""
    options = ("--inventory", "lab", "--host", site.name)
    run("minipc", "status", "--direct", *options)
    assert (DATABASE.reader, "f") in runners(site)
    run("minipc", "verify", "--smoke", *options)
    assert (DATABASE.runtime, "f") in runners(site)
    assert converge(site, "postgres").code == 0
    # PostgreSQL itself evaluates an index and statistics as the owner of the table.
    on(site, f"cd / && runuser -u postgres -- vacuumdb --quiet --analyze {DATABASE.name}")
    assert (DATABASE.owner, "f") in runners(site)

    # In the drill the questions are the first to read; told who asked, it fails.
    psql(site, f"CREATE OR REPLACE VIEW {ASKED} AS SELECT * FROM {ASKED}_real WHERE peek(true);", owner=True)
    code, result = drill(site)
    assert (code, result["verdict"]) == (1, "fail"), result
    assert f"peek: asked by {DATABASE.reader}, superuser f" in result["reason"]
    psql(site, f"CREATE OR REPLACE VIEW {ASKED} AS SELECT * FROM {ASKED}_real WHERE peek();", owner=True)
    code, result = drill(site)
    assert (code, result["verdict"]) == (0, "pass"), result["reason"]
    assert result["phases"][-1]["name"] == "volumes"

    assert {role for role, strong in runners(site) if strong == "t"} == set()
    assert owned(site) == ""


def test_a_command_in_a_backup_is_run_by_neither_drill_nor_restore(site):
    """A former superuser could leave one in postgresql.auto.conf, which overrides every other file."""
    refused = on(site, "runuser -u postgres -- psql -qc \"ALTER SYSTEM SET work_mem = '5MB'\" 2>&1 || true")
    assert "ALTER SYSTEM is not allowed" in refused
    names = ("recovery_end_command", "archive_cleanup_command", "restore_command")
    lines = "\n".join(f"{name} = 'echo {name} >> {OWNED}; false'" for name in names)
    on(site, f"rm -f {OWNED}; cat >> {DATA}/postgresql.auto.conf <<'END'\n{lines}\nEND")
    try:
        on(site, "systemctl start minipc-backup@full", timeout_s=240)
        code, result = drill(site)
        assert (code, result["verdict"]) == (0, "pass"), result["reason"]
        assert owned(site) == ""
        before = int(on(site, CANARIES))
        on(site, "cd / && runuser -u postgres -- psql -qc 'SELECT pg_switch_wal()' >/dev/null")
        on(site, f"systemctl stop minipc-heartbeat.timer postgresql@17-main; mv {DATA} {DATA}.before")
        done = converge(site, "repositories", "postgres", "backups", options=("--data", "postgres_from_backup=restore"))
        assert done.code == 0, done.output
        on(site, f"rm -rf {DATA}.before")
    finally:
        on(site, PUT_BACK, check=False)
    assert owned(site) == ""
    assert on(site, f"stat -c '%s %U %a' {DATA}/postgresql.auto.conf").strip() == "0 postgres 600"
    assert on(site, "ls /etc/postgresql/17/main/minipc-recovery.conf 2>/dev/null || true") == ""
    assert int(on(site, CANARIES)) >= before
    assert run("minipc", "verify", "--inventory", "lab", "--host", site.name, "postgres").code == 0


def test_a_planted_setting_is_reverted_by_the_next_converge(site):
    on(site, f"echo \"work_mem = '5MB'\" >> {DATA}/postgresql.auto.conf")
    assert run("minipc", "plan", "--inventory", "lab", "--host", site.name, "postgres").code == 2
    assert converge(site, "postgres").code == 0
    assert on(site, f"stat -c %s {DATA}/postgresql.auto.conf").strip() == "0"


def test_the_service_cannot_hang_the_cache(site):
    """An endless script would block Redis for all clients, and only SIGKILL would end it."""
    user, password = SERVICE.name, open_store("lab").get(redis_password(SERVICE.name)).reveal()
    cli = f"timeout 10 redis-cli -h {SETTINGS.host.service_address} --user {user} --no-auth-warning"
    script = f"""export REDISCLI_AUTH={password}
    {cli} EVAL 'while true do end' 0
    {cli} FUNCTION LIST
    {cli} PING"""
    first, second, third = [line for line in on(site, script).splitlines() if line]
    assert (first[:6], second[:6], third) == ("NOPERM", "NOPERM", "PONG")
    on(
        site,
        "kill -STOP $(systemctl show redis-server -p MainPID --value); systemctl restart redis-server",
        timeout_s=60,
    )
    assert on(site, "systemctl is-active redis-server").strip() == "active"
