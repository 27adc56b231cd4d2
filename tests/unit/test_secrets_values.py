"""The rules for secret values."""

from __future__ import annotations

import pytest

from minipc.core.errors import SecretError
from minipc.secrets import catalogue
from minipc.secrets.generate import new_value
from minipc.secrets.values import Rule, check_value
from tests.unit.secrets_leaks import assert_silent

GOOD: list[tuple[Rule, str]] = [
    ("password", "A-z_0.9~"),
    ("password", "x" * 72),
    ("url", "https://key@sentry.example.org/1?a=%20&b=c#d"),
    ("url", "http://127.0.0.1:8080/x,y;z"),
    ("line", "token with spaces, #, ' and <>"),
    ("line", "x"),
    ("wireguard-key", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="),
]
BAD: list[tuple[Rule, str]] = [
    *(("password", f"hunter2{character}") for character in "@/%#?\"\\ ü\n:'$&"),
    ("password", "x" * 73),
    ("url", "ftp://example.org"),
    ("url", "https://"),
    ("url", "hooks.example.org/x"),
    *(("url", f"https://example.org/hunter2{character}") for character in "\" '<>\\`\nü"),
    *(("line", f"hunter2{character}x") for character in '"\\\nü\t\x1b'),
    ("line", " hunter2"),
    ("line", "hunter2 "),
    ("wireguard-key", "hunter2"),
    ("wireguard-key", "aHVudGVyMg=="),
    ("wireguard-key", "ü"),
    ("ssh-key", "hunter2"),
    ("ssh-key", "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----"),
]


@pytest.mark.parametrize(("rule", "value"), GOOD)
def test_accepted(rule: Rule, value: str) -> None:
    check_value("a.b", value, rule)


@pytest.mark.parametrize(("rule", "value"), BAD)
def test_refused_by_name(rule: Rule, value: str) -> None:
    with pytest.raises(SecretError, match=r"^the value of a\.b cannot be used\n.*allowed: ") as caught:
        check_value("a.b", value, rule)
    assert_silent(caught.value, "hunter2")


def test_every_generated_value_follows_its_rule() -> None:
    for entry in catalogue.for_environment("lab"):
        if entry.generate:
            check_value(entry.name, new_value(entry.generate).rstrip("\n"), entry.rule)


def test_the_values_that_an_operator_supplies() -> None:
    rules = {entry.name: entry.rule for entry in catalogue.for_environment("lab") if not entry.generate}
    assert rules["watcher.alive_url"] == "url"
    assert rules["dns.cloudflare_token"] == "line"
