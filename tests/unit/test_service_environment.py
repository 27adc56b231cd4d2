"""Variables of a service: what is secret, what is not, and for whom a Secret is evaluated."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from minipc.services.environment import needed_secrets, secret_data, uses_password_files, variables
from tests.unit.service_files import BOOKINGS, TINY, service, settings

VALUES = {
    "secret.STRIPE_KEY": "sk_1",
    "secret.OTHER_URL": "https://other.example",
    "postgres.owner": "owner-password",
    "postgres.runtime": "runtime-password",
}


def test_a_secret_contains_what_names_the_database_or_a_secret() -> None:
    bookings = service(BOOKINGS)
    data = secret_data(bookings, settings(bookings), VALUES, "run")
    assert data == {
        "DATABASE_URL": "postgresql://bookings:runtime-password@postgres:5432/bookings",
        "OTHER_URL": "https://other.example",
        "POSTGRES_PASSWORD": "runtime-password",
        "STRIPE_KEY": "sk_1",
        "worker.DATABASE_URL": "https://other.example",
    }


def test_migrations_run_as_the_owner_and_the_drill_against_its_own_server() -> None:
    bookings = service(BOOKINGS)
    chosen = settings(bookings)
    migrate = secret_data(bookings, chosen, VALUES, "migrate")
    drill = secret_data(bookings, chosen, VALUES, "drill")
    assert migrate["DATABASE_URL"] == "postgresql://bookings_owner:owner-password@postgres:5432/bookings"
    address, port = chosen.host.service_address, chosen.backups.drill_port
    assert drill["DATABASE_URL"] == f"postgresql://bookings_owner:owner-password@{address}:{port}/bookings"
    assert migrate.keys() == drill.keys() == secret_data(bookings, chosen, VALUES, "run").keys()


def test_each_variable_has_a_text_or_a_key() -> None:
    found = {each.name: each for each in variables(service(BOOKINGS), "production", "worker")}
    assert found["DATABASE_URL"].key == "worker.DATABASE_URL", "a process overrides what all parts have"
    assert found["STRIPE_KEY"].key == "STRIPE_KEY"
    assert (found["RELEASE"].key, found["RELEASE"].text) == (None, "bookings@{service.version}")
    assert found["LITERAL"].text == "$(HOME) and {braces}", "what is not a placeholder stays"
    everywhere = {each.name: each.key for each in variables(service(BOOKINGS), "production")}
    assert everywhere["DATABASE_URL"] == "DATABASE_URL"


def test_every_key_that_a_variable_names_is_in_the_secret() -> None:
    own = {
        "environment": {
            "POSTGRES_PASSWORD": "x {postgres.user}",
            "FILE": "{postgres.password_file}",
            "CACHE": "redis://{redis.user}:{redis.password}@{redis.host}:{redis.port}",
        },
        "redis": {"kind": "cache"},
        "secrets": ["REDIS_PASSWORD", "OTHER_URL"],
    }
    odd = service(BOOKINGS, **own)
    data = secret_data(odd, settings(odd), {**VALUES, "secret.REDIS_PASSWORD": "mine", "redis": "cache"}, "run")
    for part in ("", "web", "worker", "nightly", "migrate"):
        assert {each.key for each in variables(odd, "lab", part) if each.key} <= data.keys()
    assert data["POSTGRES_PASSWORD"] == "runtime-password", "the password file, not the variable of the same name"
    assert data["variable.POSTGRES_PASSWORD"] == "x bookings"
    assert (data["REDIS_PASSWORD"], data["variable.REDIS_PASSWORD"]) == ("cache", "mine")
    assert data["CACHE"] == "redis://bookings:cache@redis:6379"
    assert uses_password_files(odd, "web") == ["POSTGRES_PASSWORD"]


def test_the_store_has_a_name_for_each_secret() -> None:
    assert needed_secrets(service(BOOKINGS)) == {
        "secret.STRIPE_KEY": "bookings.STRIPE_KEY",
        "secret.OTHER_URL": "bookings.OTHER_URL",
        "postgres.owner": "postgres.password.bookings_owner",
        "postgres.runtime": "postgres.password.bookings",
    }
    assert needed_secrets(service(TINY)) == {}


def test_a_secret_cannot_contain_the_version() -> None:
    with pytest.raises(ValidationError, match="cannot be combined"):
        service(BOOKINGS, environment={"DSN": "https://{secret.STRIPE_KEY}@example/{service.version}"})
