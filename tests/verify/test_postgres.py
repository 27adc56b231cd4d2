"""Checks of PostgreSQL: logins and rights, durability, and logging of slow statements."""

from __future__ import annotations

import json
import re
import secrets as random
import shlex
from dataclasses import dataclass, field

import pytest

from minipc.core.sizes import postgres_memory
from minipc.remote import psql
from tests.verify.conftest import eventually, not_exercised

UNIT = "postgresql@17-main.service"
MARK = "CREATE TABLE IF NOT EXISTS verify_mark (mark text);"
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
    'own_settings', (SELECT json_agg(s) FROM pg_db_role_setting s
                     WHERE setrole = 0 OR setrole IN (SELECT oid FROM pg_roles WHERE rolsuper)),
    'event_triggers', (SELECT json_agg(evtname) FROM pg_event_trigger),
    'databases', (SELECT json_object_agg(datname, json_build_object(
                      'owner', pg_get_userbyid(datdba), 'public', has_database_privilege('public', oid, 'CONNECT'),
                      'open to', ARRAY(SELECT rolname FROM pg_roles
                                       WHERE NOT rolsuper AND rolname NOT LIKE 'pg\\_%'
                                         AND has_database_privilege(oid, d.oid, 'CONNECT') ORDER BY 1)))
                  FROM pg_database d WHERE datallowconn))"""
# What a database shows of itself; run as its reader, of catalogs only.
_RIGHTS = """SELECT json_build_object(
    'event triggers', (SELECT json_agg(evtname) FROM pg_event_trigger),
    'owners', (SELECT json_agg(DISTINCT pg_get_userbyid(relowner)) FROM pg_class
               WHERE relnamespace = 'public'::regnamespace),
    'reader writes', (SELECT json_agg(relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace
                      AND relkind IN ('r', 'p', 'v', 'm', 'f')
                      AND has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER, REFERENCES')))"""


@pytest.fixture(scope="session")
def facts(sql):
    """Return settings, access rules, roles and databases, fetched in one query."""
    return json.loads(sql(_FACTS))


@dataclass(frozen=True)
class Login:
    """One login attempt and the statements to run after it."""

    role: str
    password: str = field(repr=False)
    address: str
    statements: tuple[str, ...] = ("SELECT 'welcome'",)
    database: str = "postgres"


@pytest.fixture(scope="session")
def log_in(script, settings):
    """Return a function that tries each login and returns psql's output, errors included."""

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
    """Return the addresses on which the server listens."""
    return ["127.0.0.1", "::1", settings.host.service_address]


@pytest.fixture(scope="session")
def as_role(log_in, secrets, settings, service_database):
    """Run SQL in the service's database as one of its roles with a password."""
    address = settings.host.service_address

    def run(role, *statements):
        password = secrets[f"postgres.password.{role}"].reveal()
        return log_in(Login(role, password, address, statements, service_database.name))[0]

    return run


@pytest.fixture(scope="session")
def as_runtime(as_role, service_database):
    """Return a function that runs SQL as the service."""
    return lambda *statements: as_role(service_database.runtime, *statements)


@pytest.fixture(scope="session")
def homes(settings):
    """Where each role with a password logs in: database and addresses."""
    loopback = ["127.0.0.1", "::1"]
    found = {role.name: ("postgres", loopback) for role in settings.postgres.roles}
    for database in settings.postgres.databases:
        for role in (database.owner, database.runtime):
            found[role] = (database.name, [*loopback, settings.host.service_address])
    return found


def test_it_is_postgresql_17(facts):
    """The database is PostgreSQL 17."""
    assert facts["settings"]["server_version"].split(".")[0] == "17"


def test_there_is_exactly_one_cluster(sh):
    """There is exactly one PostgreSQL cluster on the machine."""
    assert [line.split()[:2] for line in sh("pg_lsclusters --no-header").splitlines()] == [["17", "main"]]


def test_data_pages_carry_checksums(facts):
    """The database's data pages have checksums."""
    assert facts["settings"]["data_checksums"] == "on"


def test_what_is_committed_is_on_disk(facts):
    """A committed transaction is always on disk."""
    durable = {name: facts["settings"][name] for name in ("fsync", "synchronous_commit", "full_page_writes")}
    assert durable == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


def test_the_settings_are_those_of_the_file(facts):
    """PostgreSQL runs with the settings of its configuration file.

    Nothing waits for a restart, the file has no errors, and ALTER SYSTEM was not used.
    """
    assert facts["waiting"] is None
    assert facts["errors"] is None
    assert facts["overridden"] is None


def test_memory_follows_the_machines_size(facts, sh, settings):
    """PostgreSQL's memory settings fit the machine's size."""
    total_mb = int(sh("awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo"))
    wanted = postgres_memory(total_mb, settings.postgres.shared_buffers_percent)
    megabytes = {name: size // 1024**2 for name, size in facts["bytes"].items()}
    for name in ("shared_buffers", "effective_cache_size", "work_mem", "maintenance_work_mem"):
        assert megabytes[name] == getattr(wanted, f"{name}_mb"), name


def test_it_listens_on_loopback_and_the_service_address_only(listeners, settings, addresses):
    """PostgreSQL listens only on loopback and the service address."""
    found = {address for address, port, program in listeners if port == settings.postgres.port or program == "postgres"}
    assert found == set(addresses)


def test_passwords_are_scram_and_never_skipped(facts, settings):
    """Every PostgreSQL login over the network needs a SCRAM password."""
    rules = facts["hba"]
    assert [rule["error"] for rule in rules if rule["error"]] == []
    assert {rule["auth_method"] for rule in rules if rule["type"] != "local"} <= {"scram-sha-256", "reject"}
    peers = [rule for rule in rules if rule["auth_method"] == "peer"]
    assert {rule["type"] for rule in peers} == {"local"}
    readers = {(database.name, database.reader) for database in settings.postgres.databases}
    assert {(*rule["database"], *rule["user_name"]) for rule in peers} == {
        ("all", "postgres"), ("minipc", "minipc"), *readers,
    }  # fmt: skip
    assert facts["settings"]["password_encryption"] == "scram-sha-256"
    assert [name for name, role in facts["roles"].items() if not role["scram"]] == []


def test_each_role_logs_in_with_its_password(log_in, secrets, homes):
    """Each PostgreSQL role can log in with its password."""
    tries = [
        Login(role, secrets[f"postgres.password.{role}"].reveal(), address, database=database)
        for role, (database, places) in homes.items()
        for address in places
    ]
    assert [found for found in log_in(*tries) if found != "welcome"] == []


def test_a_role_gets_into_no_other_database(log_in, secrets, homes, settings):
    """A role cannot log in to a database other than its own.

    Neither to the server's own databases nor to minipc's.
    """
    everywhere = {"postgres", "template1", "minipc", *(each.name for each in settings.postgres.databases)}
    tries = [
        Login(role, secrets[f"postgres.password.{role}"].reveal(), address, database=database)
        for role, (own, places) in homes.items()
        for address in [*places, "/var/run/postgresql"]
        for database in everywhere - {own}
    ]
    assert [found for found in log_in(*tries) if "no pg_hba.conf entry" not in found] == []


def test_roles_without_a_password_log_in_nowhere_else(log_in, settings, addresses):
    """Roles without a password cannot log in over the network or from another account.

    Neither from a pod nor from the machine's other accounts.
    """
    roles = [("minipc", "minipc"), *((each.reader, each.name) for each in settings.postgres.databases)]
    tries = [Login(role, "any", address, database=database) for role, database in roles for address in addresses]
    assert [found for found in log_in(*tries) if "no pg_hba.conf entry" not in found] == []
    # Root is no system user of theirs either.
    tries = [Login(role, "any", "/var/run/postgresql", database=database) for role, database in roles]
    assert [found for found in log_in(*tries) if "Peer authentication failed" not in found] == []


def test_a_wrong_password_is_refused(log_in, homes):
    """PostgreSQL refuses a wrong password.

    On the local socket as well.
    """
    tries = [
        Login(role, "wrong", address, database=database)
        for role, (database, places) in homes.items()
        for address in [*places, "/var/run/postgresql"]
    ]
    assert [found for found in log_in(*tries) if "password authentication failed" not in found] == []


def test_the_superuser_is_refused_over_tcp(log_in, addresses):
    """The database superuser cannot log in over the network."""
    tries = [Login("postgres", "any", address) for address in addresses]
    assert [found for found in log_in(*tries) if "pg_hba.conf rejects connection" not in found] == []


def test_nobody_else_is_powerful(facts, settings):
    """Only the superuser postgres has administrator rights in the database."""
    powers = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
    powerful = [name for name, role in facts["roles"].items() if any(role[power] for power in powers)]
    assert powerful == ["postgres"]
    assert {name for name, role in facts["roles"].items() if role["rolcanlogin"]} == {
        "postgres",
        "minipc",
        *(role.name for role in settings.postgres.roles),
        *(database.reader for database in settings.postgres.databases),
    }


def test_each_database_lets_in_its_roles_and_nobody_else(facts, settings, homes):
    """Each database accepts only its own roles.

    A service's database belongs to the superuser: its owner could change settings for everybody who connects.
    """
    found, services = facts["databases"], settings.postgres.databases
    for each in services:
        allowed = sorted([each.owner, each.runtime, each.reader])
        assert found[each.name] == {"owner": "postgres", "public": False, "open to": allowed}
    others = sorted(role for role, (database, _) in homes.items() if database == "postgres")
    assert found["postgres"] == {"owner": "postgres", "public": False, "open to": others}
    assert found["template1"] == {"owner": "postgres", "public": False, "open to": []}
    assert found["minipc"] == {"owner": "minipc", "public": False, "open to": ["minipc"]}


def test_nothing_waits_for_a_superuser_to_log_in(facts):
    """No code in the database runs when the superuser logs in.

    No event trigger, and no option that is set for every role, for a database, or for the superuser.
    """
    assert (facts["event_triggers"], facts["own_settings"]) == (None, None)
    assert (facts["settings"]["event_triggers"], facts["settings"]["allow_alter_system"]) == ("off", "off")


def test_the_services_objects_belong_to_its_owner_role(sql, service_database):
    """The service's tables belong to its owner role, and its reader role cannot write."""
    found = json.loads(sql(_RIGHTS, service_database.name))
    assert (found["reader writes"], found["event triggers"]) == (None, None)
    if found["owners"] is None:
        not_exercised("the service has no tables here yet")
    assert found["owners"] == [service_database.owner]


def test_the_service_itself_changes_no_table(as_runtime, service_database):
    """The service's runtime role cannot create or change tables and functions.

    It reads and writes rows; other roles might call an object that it could replace.
    """
    for statement in (
        "CREATE TABLE public.mine ()",
        "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE SCHEMA mine",
        "CREATE EXTENSION pg_trgm",
        "CREATE PUBLICATION mine",
        f'ALTER DATABASE "{service_database.name}" SET search_path = mine',
    ):
        said = as_runtime(statement)
        assert re.search("permission denied|must be owner", said), f"{statement}: {said}"


def test_the_owner_of_the_tables_gains_no_rights_and_sets_nothing_for_others(as_role, service_database):
    """The owner role cannot install untrusted extensions or change settings of others.

    It may make schemas, and with them extensions that PostgreSQL trusts: those give no rights. Migrations may need
    temporary tables.
    """
    assert "permission denied" not in as_role(service_database.owner, "CREATE TEMPORARY TABLE mine ()")
    for statement in (
        "CREATE EXTENSION pageinspect",
        "CREATE EXTENSION file_fdw",
        f'ALTER DATABASE "{service_database.name}" SET search_path = mine',
        "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "ALTER SYSTEM SET archive_command = 'true'",
    ):
        said = as_role(service_database.owner, statement)
        assert re.search("permission denied|must be owner|must be superuser|not allowed", said), f"{statement}: {said}"


def test_the_service_can_run_no_programs_on_the_machine(as_runtime):
    """The service's role cannot run programs through the database."""
    assert "permission denied" in as_runtime("COPY (SELECT 1) TO PROGRAM 'true'")


@pytest.fixture(scope="session")
def monitoring(log_in, secrets, settings):
    """Runs SQL as the monitoring."""
    password = secrets["postgres.password.monitoring"].reveal()
    return lambda *statements: log_in(Login("monitoring", password, "127.0.0.1", statements))[0]


def test_monitoring_sees_what_the_server_does(monitoring):
    """The monitoring role can see what the database server does."""
    others = "FROM pg_stat_activity WHERE usename <> current_user"
    assert monitoring(f"SELECT bool_or(query <> '<insufficient privilege>') {others}") == "t"


def test_monitoring_changes_nothing(monitoring):
    """The monitoring role cannot change anything.

    It cannot read a service's data either: no database of a service accepts it.
    """
    assert "permission denied" in monitoring("CREATE TABLE mine ()")


def test_statements_are_counted(sql, as_runtime):
    """The database counts the statements that it runs."""
    # The name of a column makes no other statement: what an earlier verification ran is counted already.
    calls = "SELECT coalesce(sum(calls), 0) FROM public.pg_stat_statements WHERE query LIKE '%AS verify_count'"
    before = int(sql(calls))
    # Unlike any health check of a service, whose text the server would keep in place of this one.
    as_runtime(*["SELECT 1 + 2 - 3 + 4 AS verify_count"] * 3)
    assert int(sql(calls)) == before + 3


def test_a_slow_statement_is_logged_and_a_quick_one_is_not(sh, as_runtime, settings, service_database):
    """A slow statement is logged and a quick one is not."""
    slow, quick = (random.token_hex(6) for _ in range(2))
    seconds = settings.postgres.slow_statement_ms / 1000 + 0.1
    as_runtime(f"SELECT 1 /* {quick} */", f"SELECT pg_sleep({seconds}) /* {slow} */")
    logged = sh(f"tail -n 200 {LOG} | grep -F -e {slow} -e {quick} || true")
    assert re.search(rf"{service_database.runtime}@{service_database.name}/psql LOG: .*duration: .*{slow}", logged), (
        logged
    )
    assert quick not in logged


def test_the_unit_has_only_what_it_needs(exposure):
    """PostgreSQL runs with few privileges."""
    assert exposure(UNIT) < 4


def test_it_starts_at_boot_and_is_the_last_that_the_kernel_may_kill(units):
    """PostgreSQL starts at boot and is the last process killed when memory runs out."""
    unit = units(UNIT)
    assert unit["UnitFileState"] in ("enabled", "enabled-runtime")
    assert unit["OOMScoreAdjust"] == "-900"


def test_the_disk_has_a_reserve(units, script):
    """There is a reserve of disk space, unless too little is free to create it."""
    assert units("minipc-disk-space.timer")["ActiveState"] == "active"
    command = "stat -c %s /var/lib/postgresql/reserve 2>/dev/null || df --output=pcent /var/lib/postgresql | tail -1"
    found = eventually(lambda: script(command), within_s=60).strip()
    if found.endswith("%"):
        not_exercised(f"{found} of the disk are used: too much to create the reserve")
    assert int(found) >= 64 * 2**20


@pytest.fixture(scope="session")
def wal_is_sent(settings):
    """End the check as NOT EXERCISED on a machine that does not send WAL as it is written."""
    if settings.backups.offsite is None:
        not_exercised("there is no off-site machine: backups_offsite is None")
    if not settings.backups.wal_stream:
        not_exercised("backups_wal_stream is False")


def test_what_is_committed_now_is_off_site_within_seconds(sql, sh, wal_is_sent):
    """The off-site host has the WAL of what was committed seconds ago, and it is the same as on the machine."""
    sql("SELECT pg_logical_emit_message(true, 'minipc-verify', '')")
    said = sh("/usr/local/lib/minipc/wal-stream check 2>&1")
    assert "the off-site host has the" in said or "is archived" in said, said


def test_what_sends_wal_is_confined(units, wal_is_sent):
    """The unit that sends WAL runs with few privileges."""
    properties = units("minipc-wal-stream.service")
    assert (properties["ActiveState"], properties["UnitFileState"]) == ("active", "enabled")
    assert properties["ProtectSystem"] == "strict"
    assert properties["NoNewPrivileges"] == "yes"
    wanted = {"cap_dac_read_search", "cap_kill", "cap_setgid", "cap_setuid"}
    assert set(properties["CapabilityBoundingSet"].split()) == wanted


def test_a_killed_server_comes_back_with_what_was_committed(disturb, sql, script, settings):
    """After a crash PostgreSQL restarts with all committed data."""
    mark = random.token_hex(8)
    sql(f"{MARK} INSERT INTO verify_mark VALUES ('{mark}')", "minipc")
    try:
        before = disturb(f"systemctl show {UNIT} -p MainPID --value")
        disturb(f"kill -KILL {before}")
        read = psql.command(settings.postgres, "minipc", "-c", "SELECT mark FROM verify_mark")
        assert eventually(lambda: mark in script(read), within_s=30), "not back within 30 s"
        assert disturb(f"systemctl show {UNIT} -p MainPID --value") != before
    finally:
        sql("DROP TABLE verify_mark", "minipc")


def test_a_restart_keeps_everything(disturb, sql):
    """A restart of PostgreSQL keeps all data."""
    mark = random.token_hex(8)
    sql(f"{MARK} INSERT INTO verify_mark VALUES ('{mark}')", "minipc")
    try:
        disturb(f"systemctl restart {UNIT}")
        assert mark in sql("SELECT mark FROM verify_mark", "minipc")
    finally:
        sql("DROP TABLE verify_mark", "minipc")
