"""Secrets that service files declare: only the operator knows them; stored, checked, in the bundle, never shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minipc import config
from minipc.bundle import contents
from minipc.cli.secrets import secrets
from minipc.config.service import Service
from minipc.core import paths
from minipc.core.errors import MinipcError, SecretError
from minipc.secrets import backends, catalogue
from minipc.secrets.age import AgeStore
from tests.unit.secrets_leaks import assert_silent

PEM = "-----BEGIN KEY-----\nhunter2\n-----END KEY-----"
SHOP = Service.model_validate(
    {
        "name": "shop",
        "image": "example.org/shop",
        "processes": {"web": {"port": 80}},
        "health": {"live": "/", "ready": "/"},
        "ingress": {
            "domains": ["shop.example.org"],
            "node_port": 30100,
            "authentication": {"basic": {"user": "friends"}},
        },
        "redis": {"kind": "queue"},
        "secrets": ["STRIPE_KEY", "signing_pem"],
    }
)
OWN = ["shop.INGRESS_PASSWORD", "shop.STRIPE_KEY", "shop.signing_pem"]

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `minipc secrets` where production is the lab's configuration with the service SHOP."""
    lab = config.load("lab")
    services = lab.services.model_copy(update={"declared": (SHOP,)})
    with_shop = lab.model_copy(update={"services": services})
    monkeypatch.setattr(config, "load", lambda environment: with_shop)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.setenv("MINIPC_AGE_KEY_FILE", str(tmp_path / "age.key"))
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(secrets, arguments, input=stdin)

    assert run("init").exit_code == 0
    return run


def stored() -> AgeStore:
    store = backends.open_store("production")
    assert isinstance(store, AgeStore)
    return store


def test_init_generates_none_of_them_and_names_each(run: Run) -> None:
    assert not {"shop.STRIPE_KEY", "shop.signing_pem", "shop.INGRESS_PASSWORD"} & set(stored().names())
    assert "redis.password.shop" in stored().names()
    said = run("init").output
    for name in OWN:
        assert f"REQUIRED, set it yourself: {name} (" in said


def test_check_lists_what_is_not_set(run: Run) -> None:
    assert run("set", "shop.STRIPE_KEY", stdin="sk_1").exit_code == 0
    error = run("check").exception
    assert isinstance(error, SecretError)
    assert "2 secrets are missing" in str(error)
    assert "shop.signing_pem" in str(error)
    assert "shop.STRIPE_KEY" not in str(error)


def test_any_text_is_kept_as_it_is(run: Run) -> None:
    for name, value in zip(OWN, ("pass-word", 'quotes " \\ and ü', PEM), strict=True):
        result = run("set", name, stdin=value + "\n")
        assert result.exit_code == 0, result.exception
        assert value not in result.output
    assert stored().read(["shop.signing_pem"])["shop.signing_pem"].reveal() == PEM
    assert run("check").exit_code == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "shop.STRIPEKEY",
            "x",
            "no service uses a secret shop.STRIPEKEY; did you mean shop.STRIPE_KEY?",
        ),
        ("other.STRIPE_KEY", "x", "no component and no service uses a secret other.STRIPE_KEY"),
        ("shop.stripe-key.", "x", "is not the name of a secret"),
        ("shop.STRIPE_KEY", "", "shop.STRIPE_KEY"),
        ("shop.STRIPE_KEY", "hunter2\0", "shop.STRIPE_KEY"),
        ("shop.STRIPE_KEY", "hunter2" * 10000, "65536 characters at most"),
        ("shop.INGRESS_PASSWORD", "hunter2 with spaces", "letters, digits and"),
    ],
)
def test_what_cannot_be_stored(run: Run, name: str, value: str, said: str) -> None:
    result = run("set", name, stdin=value)
    assert isinstance(result.exception, MinipcError)
    assert said in str(result.exception)
    assert_silent(result.exception, "hunter2")
    assert name not in stored().names()


def test_they_are_not_renewed_by_chance(run: Run) -> None:
    assert isinstance(run("renew", "shop.STRIPE_KEY").exception, SecretError)


def test_a_bundle_needs_and_contains_them(run: Run) -> None:
    with pytest.raises(SecretError, match=r"shop\.STRIPE_KEY"):
        contents._values(stored(), "production")
    for name in OWN:
        run("set", name, stdin="value")
    assert set(OWN) <= set(contents._values(stored(), "production"))


def test_in_the_lab_they_are_invented(run: Run) -> None:
    found = {entry.name: entry for entry in catalogue.for_environment("lab")}
    assert [found[name].generate for name in OWN] == ["alphanumeric"] * 3
    assert found["shop.STRIPE_KEY"].rule == "text"
    assert dataclasses.replace(found["shop.STRIPE_KEY"], generate=None) in catalogue.of_services([SHOP])


def test_service_files_are_in_the_bundle(run: Run) -> None:
    for name in ("services/shop.yaml", "services/shop.rules.yml", "group_data/lab.py", "inventory/lab.py"):
        path = paths.ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert {"services/shop.yaml", "services/shop.rules.yml"} <= {
        item.target for item in contents._repository_items("lab")
    }
