"""PostgreSQL: who gets in, that nothing committed is lost, and that what is slow gets noticed."""

from __future__ import annotations

import json
import re
import secrets as random
import shlex
from dataclasses import dataclass, field

import pytest

from minipc.sizes import postgres_memory
from tests.verify.conftest import eventually, not_exercised

UNIT = "postgresql@17-main.service"
LOG = "/var/log/postgresql/postgresql-17-main.log"
_FACTS = """SELECT json_build_object(
    'settings', (SELECT json_object_agg(name, current_setting(name)) FROM pg_settings),
    'waiting', (SELECT json_agg(name) FROM pg_settings WHERE pending_restart),
    'errors', (SELECT json_agg(name || ': ' || error) FROM pg_file_settings WHERE error IS NOT NULL),
    'overridden', (SELECT json_agg(name) FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf'),
    'bytes', (SELECT json_object_agg(name, pg_size_bytes(current_setting(name))) FROM pg_settings
              WHERE unit IN ('kB', '8kB') AND vartype = 'integer' AND setting::bigint >= 0),
    'hba', (SELECT json_agg(r) FROM pg_hba_file_rules r),
    'roles', (SELECT json_object_agg(rolname, to_jsonb(a) || jsonb_build_object(
                  'scram', coalesce(rolpassword LIKE 'SCRAM-SHA-256$%', rolpassword IS NULL), 'rolpassword', null))
              FROM pg_authid a WHERE rolname NOT LIKE 'pg\\_%'),
    'databases', (SELECT json_object_agg(datname, json_build_object(
                      'owner', pg_get_userbyid(datdba), 'public', has_database_privilege('public', oid, 'CONNECT')))
                  FROM pg_database WHERE NOT datistemplate))"""


@pytest.fixture(scope="session")
def facts(sql):
    """Settings, access rules, roles and databases, in one query."""
    return json.loads(sql(_FACTS))


@dataclass(frozen=True)
class Login:
    """One attempt to log in, and the statements to run then."""

    role: str
    password: str = field(repr=False)
    address: str
    statements: tuple[str, ...] = ("SELECT 'welcome'",)
    database: str = "postgres"


@pytest.fixture(scope="session")
def log_in(script, settings):
    """Tries each login and returns what psql printed, errors included; all of them in one command."""

    def run(*logins):
        lines = ["export PGCONNECT_TIMEOUT=5"]
        for each in logins:
            where = f"-h {each.address} -p {settings.postgres.port} -U {each.role} -d {each.database}"
            commands = " ".join(f"-c {shlex.quote(statement)}" for statement in each.statements)
            lines += [f"PGPASSWORD={each.password} psql -XAtqw {where} {commands}", "printf '\\036'"]
        return [each.strip() for each in script("\n".join(lines)).split("\036")[: len(logins)]]

    return run


@pytest.fixture(scope="session")
def addresses(settings):
    """Where the server answers on TCP."""
    return ["127.0.0.1", "::1", settings.host.service_address]


@pytest.fixture(scope="session")
def workload(log_in, secrets, settings):
    """Runs SQL as the service."""
    password = secrets["postgres.password.workload"].reveal()
    address = settings.host.service_address
    return lambda *statements: log_in(Login("workload", password, address, statements, "workload"))[0]


def test_it_is_postgresql_17(facts):
    assert facts["settings"]["server_version"].split(".")[0] == "17"


def test_there_is_exactly_one_cluster(sh):
    assert [line.split()[:2] for line in sh("pg_lsclusters --no-header").splitlines()] == [["17", "main"]]


def test_data_pages_carry_checksums(facts):
    assert facts["settings"]["data_checksums"] == "on"


def test_what_is_committed_is_on_disk(facts):
    durable = {name: facts["settings"][name] for name in ("fsync", "synchronous_commit", "full_page_writes")}
    assert durable == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


def test_the_settings_are_those_of_the_file(facts):
    """Nothing waits for a restart, the file has no errors, and nobody used ALTER SYSTEM."""
    assert facts["waiting"] is None
    assert facts["errors"] is None
    assert facts["overridden"] is None


def test_memory_follows_the_machines_size(facts, sh, settings):
    total_mb = int(sh("awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo"))
    wanted = postgres_memory(total_mb, settings.postgres.shared_buffers_percent)
    megabytes = {name: size // 1024**2 for name, size in facts["bytes"].items()}
    for name in ("shared_buffers", "effective_cache_size", "work_mem", "maintenance_work_mem"):
        assert megabytes[name] == getattr(wanted, f"{name}_mb"), name


def test_it_listens_on_loopback_and_the_service_address_only(listeners, settings, addresses):
    found = {address for address, port, program in listeners if port == settings.postgres.port or program == "postgres"}
    assert found == set(addresses)


def test_passwords_are_scram_and_never_skipped(facts):
    rules = facts["hba"]
    assert [rule["error"] for rule in rules if rule["error"]] == []
    assert {rule["auth_method"] for rule in rules if rule["type"] != "local"} <= {"scram-sha-256", "reject"}
    peers = [rule for rule in rules if rule["auth_method"] == "peer"]
    assert [(rule["type"], rule["user_name"]) for rule in peers] == [("local", ["postgres"])]
    assert facts["settings"]["password_encryption"] == "scram-sha-256"
    assert [name for name, role in facts["roles"].items() if not role["scram"]] == []


def test_each_role_logs_in_with_its_password(log_in, settings, secrets, addresses):
    roles = [(role.name, secrets[f"postgres.password.{role.name}"].reveal()) for role in settings.postgres.roles]
    tries = [Login(name, password, address) for name, password in roles for address in addresses]
    assert [found for found in log_in(*tries) if found != "welcome"] == []


def test_a_wrong_password_is_refused(log_in, settings, addresses):
    """On the local socket as well."""
    places = [*addresses, "/var/run/postgresql"]
    tries = [Login(role.name, "wrong", address) for role in settings.postgres.roles for address in places]
    assert [found for found in log_in(*tries) if "password authentication failed" not in found] == []


def test_the_superuser_is_refused_over_tcp(log_in, addresses):
    tries = [Login("postgres", "any", address) for address in addresses]
    assert [found for found in log_in(*tries) if "pg_hba.conf rejects connection" not in found] == []


def test_nobody_else_is_powerful(facts, settings):
    powers = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
    powerful = [name for name, role in facts["roles"].items() if any(role[power] for power in powers)]
    assert powerful == ["postgres"]
    assert {name for name, role in facts["roles"].items() if role["rolcanlogin"]} == {
        "postgres",
        *(role.name for role in settings.postgres.roles),
    }


def test_databases_belong_to_their_owners_and_not_to_everyone(facts, settings):
    for database in settings.postgres.databases:
        assert facts["databases"][database.name] == {"owner": database.owner, "public": False}


def test_the_service_can_run_no_programs_on_the_machine(workload):
    assert "permission denied" in workload("COPY (SELECT 1) TO PROGRAM 'true'")


@pytest.fixture(scope="session")
def monitoring(log_in, secrets, settings):
    """Runs SQL as the monitoring, in the service's database."""
    password = secrets["postgres.password.monitoring"].reveal()
    address = settings.host.service_address
    return lambda *statements: log_in(Login("monitoring", password, address, statements, "workload"))[0]


def test_monitoring_sees_what_the_server_does(monitoring):
    others = "FROM pg_stat_activity WHERE usename <> current_user"
    assert monitoring(f"SELECT bool_or(query <> '<insufficient privilege>') {others}") == "t"


def test_monitoring_reads_no_data(monitoring):
    every = "SELECT count(*), coalesce(sum(has_table_privilege(relid, 'SELECT, INSERT, UPDATE, DELETE')::int), 0)"
    tables, readable = monitoring(f"{every} FROM pg_stat_user_tables").split("|")
    assert readable == "0"
    assert "permission denied" in monitoring("CREATE TABLE mine ()")
    if tables == "0":
        not_exercised("the service has no tables here yet")


def test_statements_are_counted(sql, workload):
    # The name of a column makes no other statement: what an earlier verification ran is counted already.
    calls = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE '%AS verify_count'"
    before = int(sql(calls))
    workload(*["SELECT 1 AS verify_count"] * 3)
    assert int(sql(calls)) == before + 3


def test_a_slow_statement_is_logged_and_a_quick_one_is_not(sh, workload, settings):
    slow, quick = (random.token_hex(6) for _ in range(2))
    seconds = settings.postgres.slow_statement_ms / 1000 + 0.1
    workload(f"SELECT 1 /* {quick} */", f"SELECT pg_sleep({seconds}) /* {slow} */")
    logged = sh(f"tail -n 200 {LOG} | grep -F -e {slow} -e {quick} || true")
    assert re.search(rf"workload@workload/psql LOG: .*duration: .*{slow}", logged), logged
    assert quick not in logged


def test_the_unit_has_only_what_it_needs(exposure):
    assert exposure(UNIT) < 4


def test_it_starts_at_boot_and_is_the_last_that_the_kernel_may_kill(units):
    unit = units(UNIT)
    assert unit["UnitFileState"] in ("enabled", "enabled-runtime")
    assert unit["OOMScoreAdjust"] == "-900"


def test_a_killed_server_comes_back_with_what_was_committed(disturb, sql, script, settings):
    mark = random.token_hex(8)
    sql(f"CREATE TABLE IF NOT EXISTS verify_mark (mark text); INSERT INTO verify_mark VALUES ('{mark}')")
    try:
        before = disturb(f"systemctl show {UNIT} -p MainPID --value")
        disturb(f"kill -KILL {before}")
        psql = (
            f"cd / && runuser -u postgres -- psql -XAtq -p {settings.postgres.port} -c 'SELECT mark FROM verify_mark'"
        )
        assert eventually(lambda: mark in script(psql), within_s=30), "not back within 30 s"
        assert disturb(f"systemctl show {UNIT} -p MainPID --value") != before
    finally:
        sql("DROP TABLE verify_mark")


def test_a_restart_keeps_everything(disturb, sql):
    mark = random.token_hex(8)
    sql(f"CREATE TABLE IF NOT EXISTS verify_mark (mark text); INSERT INTO verify_mark VALUES ('{mark}')")
    try:
        disturb(f"systemctl restart {UNIT}")
        assert mark in sql("SELECT mark FROM verify_mark")
    finally:
        sql("DROP TABLE verify_mark")
