"""Roles and databases: only what differs is changed, and the server never sees a password."""

from __future__ import annotations

import base64

import pytest

from minipc.config.schema import PostgresDatabase, PostgresRole
from minipc.operations.postgres import _database_statements, _role_statements, scram_verifier, verifies
from minipc.secrets import Secret
from minipc.sizes import postgres_memory

# Source: RFC 7677, section 3: user "user", password "pencil".
RFC_SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")

ROLE = PostgresRole(name="app", memberships=["pg_monitor"])
PASSWORDS = {"app": Secret("postgres.password.app", "pencil")}


def there(**changes):
    state = {"verifier": scram_verifier("pencil"), "login": True, "super": False, "memberships": ["pg_monitor"]}
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
        ({"super": True}, 'ALTER ROLE "app" NOSUPERUSER;'),
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


def test_a_database_is_closed_to_everybody_else():
    database = PostgresDatabase(name="app", owner="app")
    made = _database_statements([database], [ROLE], {})
    assert made[:2] == ['CREATE DATABASE "app" OWNER "app";', 'REVOKE ALL ON DATABASE "app" FROM PUBLIC;']
    assert _database_statements([database], [ROLE], {"app": {"owner": "app", "public": False}}) == []
    moved = _database_statements([database], [ROLE], {"app": {"owner": "postgres", "public": False}})
    assert moved == ['ALTER DATABASE "app" OWNER TO "app";']


@pytest.mark.parametrize(("total", "shared", "work"), [(16_000, 2380, 15), (1024, 153, 4), (100, 64, 4)])
def test_sizes_follow_memory(total, shared, work):
    memory = postgres_memory(total, 15)
    assert (memory.shared_buffers_mb, memory.work_mem_mb) == (shared, work)
    assert memory.shared_buffers_mb <= memory.effective_cache_size_mb <= max(total, 128)


def test_a_few_megabytes_more_change_nothing():
    assert postgres_memory(7900, 15) == postgres_memory(7901, 15)
