"""A secret is only text where `.reveal()` is called."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re

import pytest
import yaml
from jinja2 import Environment, StrictUndefined

from minipc.core.errors import SecretError
from minipc.secrets.logs import show_labels
from minipc.secrets.secret import Secret, Secrets, check_name
from tests.unit.secrets_leaks import assert_silent

VALUE = "hunter2-correct-horse"


@pytest.fixture
def secret() -> Secret:
    return Secret("postgres.password.parking", VALUE)


@pytest.fixture
def default_record_factory():
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    yield
    logging.setLogRecordFactory(before)


def test_reveal_gives_the_value(secret: Secret) -> None:
    assert secret.reveal() == VALUE


def test_repr_names_it_and_hides_the_value(secret: Secret) -> None:
    assert re.fullmatch(r"Secret\(postgres\.password\.parking, sha256:[0-9a-f]{6}\)", repr(secret))
    assert repr(Secret("a.b", VALUE)) != repr(Secret("a.b", VALUE + "x"))
    assert VALUE not in repr(Secrets({"postgres.password.parking": secret}))


def test_the_label_is_no_plain_hash_to_guess_against(secret: Secret) -> None:
    import hashlib

    assert hashlib.sha256(VALUE.encode()).hexdigest()[:6] not in repr(secret)


@pytest.mark.parametrize(
    "write",
    [
        str,
        "{}".format,
        "{:>40}".format,
        lambda secret: f"{secret}",
        lambda secret: "password=" + secret,
        lambda secret: "%s" % secret,  # noqa: UP031
        lambda secret: "".join([secret]),
        json.dumps,
        yaml.safe_dump,
        pickle.dumps,
        bytes,
    ],
)
def test_every_other_way_to_write_it_is_refused(write, secret: Secret) -> None:
    with pytest.raises((TypeError, yaml.YAMLError)) as caught:
        write(secret)
    assert_silent(caught.value, VALUE)


@pytest.mark.parametrize("autoescape", [False, True])
@pytest.mark.parametrize(
    "template",
    [
        "{{ s }}",
        "{{ s | upper }}",
        "{{ 'pw=' ~ s }}",
        "{{ [s] | join(',') }}",
        "{{ s | tojson }}",
        "{{ '%s' | format(s) }}",
    ],
)
def test_a_template_that_forgets_reveal_stops_and_writes_no_mask(
    template: str, autoescape: bool, secret: Secret
) -> None:
    environment = Environment(undefined=StrictUndefined, autoescape=autoescape)
    with pytest.raises(TypeError) as caught:
        environment.from_string(template).render(s=secret)
    assert_silent(caught.value, VALUE)


def test_a_template_that_reveals_gets_the_value(secret: Secret) -> None:
    secrets = Secrets({secret.name: secret})
    template = Environment(undefined=StrictUndefined).from_string("{{ secrets['postgres.password.parking'].reveal() }}")
    assert template.render(secrets=secrets) == VALUE


def test_refusal_says_which_secret_and_what_to_do(secret: Secret) -> None:
    with pytest.raises(TypeError, match=r"postgres\.password\.parking.*\.reveal\(\)"):
        str(secret)


@pytest.mark.usefixtures("default_record_factory")
def test_logging_shows_the_label(caplog: pytest.LogCaptureFixture, secret: Secret) -> None:
    show_labels()
    show_labels()
    logger = logging.getLogger("test")
    logger.warning("one %s", secret)
    logger.warning("two %(password)s", {"password": secret})
    logger.warning(secret)
    logger.warning("four %r %s", [secret], "x")
    assert [record.getMessage() for record in caplog.records] == [
        f"one {secret!r}",
        f"two {secret!r}",
        repr(secret),
        f"four [{secret!r}] x",
    ]


@pytest.mark.usefixtures("default_record_factory")
def test_logging_without_labels_neither_stops_the_program_nor_shows_the_value(
    capsys: pytest.CaptureFixture[str], secret: Secret
) -> None:
    logger = logging.Logger("alone")
    logger.addHandler(logging.StreamHandler())
    logger.warning("one %s", secret)
    assert VALUE not in capsys.readouterr().err


def test_equality_and_copies(secret: Secret) -> None:
    assert secret == Secret(secret.name, VALUE)
    assert secret != Secret(secret.name, "other")
    assert secret != Secret("other.name", VALUE)
    assert secret != VALUE
    assert copy.deepcopy({"a": secret})["a"] is secret
    assert copy.copy(secret) is secret
    assert len({secret, Secret(secret.name, VALUE)}) == 1


@pytest.mark.parametrize("value", ["", None, 5, True, b"bytes", "nul\0byte", "\udc80half"])
def test_values_that_cannot_be_secrets(value) -> None:
    with pytest.raises(SecretError) as caught:
        Secret("a.b", value)
    assert "a.b" in str(caught.value)
    assert "byte" not in str(caught.value)


@pytest.mark.parametrize("name", ["sentry.dsn", "postgres.password._role", "a.b-c.d_1", "wireguard.peer.1"])
def test_valid_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "plain", "Upper.case", "a..b", ".a", "a.", "a b.c", "../x.y", "a.b\n", "a/b.c"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(SecretError, match="allowed: lower-case parts"):
        check_name(name)


def test_a_name_with_a_value_in_it_is_not_repeated() -> None:
    with pytest.raises(SecretError) as caught:
        check_name(f"sentry.dsn={VALUE}")
    assert "sentry.dsn" in str(caught.value)
    assert_silent(caught.value, VALUE)


def test_secrets_tell_not_asked_from_not_set(secret: Secret) -> None:
    secrets = Secrets({secret.name: secret}, frozenset({"sentry.dsn"}))
    assert secrets[secret.name] is secret
    assert secrets.optional(secret.name) is secret
    assert secrets.optional("sentry.dsn") is None
    assert list(secrets) == [secret.name]
    assert len(secrets) == 1
    assert secret.name in secrets
    assert "sentry.dsn" not in secrets
    with pytest.raises(SecretError, match=r"optional secret sentry\.dsn is not set"):
        secrets["sentry.dsn"]
    with pytest.raises(SecretError, match=r"redis\.password\.x was not requested"):
        secrets["redis.password.x"]
    with pytest.raises(SecretError, match=r"redis\.password\.x was not requested"):
        secrets.optional("redis.password.x")
