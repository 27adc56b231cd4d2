"""Roles and databases: only what differs is changed, and the server never sees a password."""

from __future__ import annotations

import base64
import subprocess

import pytest

from minipc.config.schema import PostgresDatabase, PostgresRole
from minipc.core.sizes import postgres_memory
from minipc.pyinfra_ext.operations import postgres as operations
from minipc.pyinfra_ext.operations.postgres import (
    NEW_SERVER,
    _database_statements,
    _role_statements,
    access_statements,
    scram_verifier,
    verifies,
)
from minipc.secrets import Secret

# Source: RFC 7677, section 3: user "user", password "pencil".
RFC_SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")

ROLE = PostgresRole(name="app", memberships=["pg_monitor"])
PASSWORDS = {"app": Secret("postgres.password.app", "pencil")}


def there(**changes):
    state = {"verifier": scram_verifier("pencil"), "login": True, "powerful": False, "memberships": ["pg_monitor"]}
    return {"app": state | changes}


def test_the_verifier_is_the_one_of_the_rfc():
    """The RFC gives ServerSignature for this exchange; it is an HMAC with the ServerKey that we store."""
    import hashlib
    import hmac

    message = (
        "n=user,r=rOprNGfwEbeRWgbNEkqO,"
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    server_key = base64.b64decode(scram_verifier("pencil", RFC_SALT).rsplit(":", 1)[1])
    signature = hmac.digest(server_key, message.encode(), hashlib.sha256)
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_a_verifier_is_for_its_password_only():
    verifier = scram_verifier("pencil")
    assert verifies("pencil", verifier)
    assert not verifies("pencils", verifier)
    assert scram_verifier("pencil") != verifier, "each has a salt of its own"


@pytest.mark.parametrize("stored", [None, "", "md5abcdef", "SCRAM-SHA-256$1:AAAA$x:y", "SCRAM-SHA-256$nonsense"])
def test_a_verifier_of_another_kind_is_replaced(stored):
    assert not verifies("pencil", stored)


def test_nothing_to_do():
    assert _role_statements([ROLE], PASSWORDS, there()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"login": False}, 'ALTER ROLE "app" LOGIN;'),
        ({"powerful": True}, 'ALTER ROLE "app" NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;'),
        ({"memberships": []}, 'GRANT "pg_monitor" TO "app";'),
        ({"memberships": ["pg_monitor", "pg_write_all_data"]}, 'REVOKE "pg_write_all_data" FROM "app";'),
    ],
)
def test_one_statement_for_one_difference(changes, expected):
    assert _role_statements([ROLE], PASSWORDS, there(**changes)) == [expected]


def test_a_new_role_gets_a_verifier_never_the_password():
    statements = "\n".join(_role_statements([ROLE], PASSWORDS, {}))
    assert 'CREATE ROLE "app" LOGIN;' in statements
    assert "PASSWORD 'SCRAM-SHA-256$4096:" in statements
    assert "pencil" not in statements


SERVICE = PostgresDatabase(name="app", owner="app_owner", runtime="app", reader="app_reader")
ROLES = [PostgresRole(name=name, memberships=[]) for name in ("app_owner", "app", "watcher")]
OURS = {"owner": "minipc", "public": False, "connect": []}
SETTLED = {
    "postgres": {"owner": "postgres", "public": False, "connect": ["watcher"]},
    "template1": {"owner": "postgres", "public": False, "connect": []},
    "minipc": OURS,
    "app": {"owner": "postgres", "public": False, "connect": ["app", "app_owner", "app_reader"]},
}


def database_statements(**changes):
    return _database_statements([SERVICE], ROLES, {**SETTLED, **changes})


def test_a_database_that_is_right_is_left_alone():
    assert database_statements() == []


def test_a_new_database_belongs_to_the_superuser_and_lets_in_its_roles():
    assert database_statements(app=None) == [
        'CREATE DATABASE "app" OWNER "postgres";',
        'REVOKE ALL ON DATABASE "app" FROM PUBLIC;',
        *(f'GRANT CONNECT ON DATABASE "app" TO "{role}";' for role in ("app_owner", "app", "app_reader")),
    ]


def test_a_database_of_the_services_role_is_taken_over_without_shutting_it_out():
    """Its new owner inherits what was granted to the old one, so that is granted again before anybody sees it."""
    assert database_statements(app={"owner": "app", "public": False, "connect": ["watcher"]}) == [
        "BEGIN;",
        'ALTER DATABASE "app" OWNER TO "postgres";',
        *(f'GRANT CONNECT ON DATABASE "app" TO "{role}";' for role in ("app_owner", "app", "app_reader")),
        "COMMIT;",
        'REVOKE ALL ON DATABASE "app" FROM "watcher";',
    ]


def test_the_servers_own_databases_are_closed():
    made = _database_statements([SERVICE], ROLES, SETTLED | NEW_SERVER)
    assert made == [
        'REVOKE ALL ON DATABASE "postgres" FROM PUBLIC;',
        'GRANT CONNECT ON DATABASE "postgres" TO "watcher";',
        'REVOKE ALL ON DATABASE "template1" FROM PUBLIC;',
    ]


def test_our_own_roles_have_no_password():
    """They log in by peer; one who set a password for such a role could come in from elsewhere otherwise."""
    there = {"verifier": scram_verifier("x"), "login": True, "powerful": False, "memberships": []}
    ours = PostgresRole(name="app_reader", memberships=[])
    assert _role_statements([ours], {}, {}) == ['CREATE ROLE "app_reader" LOGIN;']
    assert _role_statements([ours], {}, {"app_reader": there}) == ['ALTER ROLE "app_reader" PASSWORD NULL;']
    assert _role_statements([ours], {}, {"app_reader": there | {"verifier": None}}) == []


def test_rights_are_changed_in_one_transaction_and_only_where_they_are_not_right():
    passwords = {role.name: Secret(f"postgres.password.{role.name}", "pencil") for role in ROLES}
    state = {"verifier": scram_verifier("pencil"), "login": True, "powerful": False, "memberships": []}
    found = {
        "roles": {role.name: state for role in ROLES}
        | dict.fromkeys(("minipc", "app_reader"), state | {"verifier": None}),
        "databases": SETTLED,
    }
    settled = {"app": True, "minipc": True}
    assert access_statements(ROLES, [SERVICE], passwords, [], found, settled) == []
    made = access_statements(ROLES, [SERVICE], passwords, [], found, settled | {"app": False})
    assert made[0] == '\\connect "app"'
    assert made[2] == "BEGIN;"
    assert made[-1] == "COMMIT;"
    inside = made[3:-1]
    assert inside[0] == 'REASSIGN OWNED BY "app", "app_reader" TO "app_owner";'
    to_reader = [line for line in inside if line.endswith('TO "app_reader";') and " SCHEMA public TO" not in line]
    rights = {line.split("GRANT ")[1].rpartition(" TO ")[0].replace("ALL ", "") for line in to_reader}
    kinds = {"SELECT ON TABLES", "SELECT ON SEQUENCES"}
    assert {right.replace(" IN SCHEMA public", "") for right in rights} == {*kinds, "USAGE ON SCHEMAS"}
    assert 'GRANT CREATE, TEMPORARY ON DATABASE "app" TO "app_owner";' in inside


def test_extensions_are_made_before_the_owner_gets_its_rights():
    """Its first migration may use them, and could not make them."""
    database = SERVICE.model_copy(update={"extensions": ["citext", "uuid-ossp"]})
    made = access_statements([], [database], {}, [], {"databases": SETTLED}, {"minipc": True})
    first = made.index('CREATE EXTENSION IF NOT EXISTS "citext" CASCADE;')
    assert made[first - 2 : first + 2] == [
        '\\connect "app"',
        "SET search_path = public;",
        'CREATE EXTENSION IF NOT EXISTS "citext" CASCADE;',
        'CREATE EXTENSION IF NOT EXISTS "uuid-ossp" CASCADE;',
    ]
    assert first < made.index("BEGIN;")


@pytest.mark.parametrize(("total", "shared", "work"), [(16_000, 2380, 15), (1024, 153, 4), (100, 64, 4)])
def test_sizes_follow_memory(total, shared, work):
    memory = postgres_memory(total, 15)
    assert (memory.shared_buffers_mb, memory.work_mem_mb) == (shared, work)
    assert memory.shared_buffers_mb <= memory.effective_cache_size_mb <= max(total, 128)


def test_a_few_megabytes_more_change_nothing():
    assert postgres_memory(7900, 15) == postgres_memory(7901, 15)


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ("FATAL:  could not map anonymous shared memory", "could not map anonymous shared memory"),
        ("LOG:  starting", "check that the repositories can be reached"),
    ],
)
def test_a_recovery_that_fails_says_why(tmp_path, last, why):
    """The reason was only in PostgreSQL's log file, and the summary said that pyinfra ended with 1."""
    early = "FATAL:  the database system is not accepting connections"
    (tmp_path / "postgresql.log").write_text(f"LOG:  listening\n{last}\n{early}\nLOG:  shutting down\n")
    wait = operations._WAIT.format(seconds=1, stops=1, psql="false").replace("/var/log/postgresql", str(tmp_path))
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "systemctl").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", wait], capture_output=True, text=True, env=path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("restore: recovery does not end: ")
    assert why in done.stderr.splitlines()[-1]
