"""The service files: what is accepted, and how each mistake is explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from minipc.config import load, services
from minipc.config.load import group_data, parse
from minipc.core.errors import ConfigError

SHOP = {
    "image": "ghcr.io/you/shop",
    "ingress": {"domains": ["shop.example.org"], "node_port": 30100},
    "processes": {"web": {"port": 8000}},
    "health": {"live": "/healthz", "ready": "/healthz"},
    "postgres": {"database": "shop"},
}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def read(folder: Path, **changes: object) -> object:
    return services.read_file(write(folder, "shop", SHOP | changes))


def test_a_small_file_is_enough(tmp_path):
    service = services.read_file(write(tmp_path, "shop", SHOP))
    assert (service.name, service.domain) == ("shop", "shop.example.org")
    assert service.front
    assert service.front[0] == "web"
    assert service.postgres
    assert service.postgres.roles == ("shop_owner", "shop", "shop_reader")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"imge": "x"}, "imge: unknown key; did you mean 'image'?"),
        ({"ingress": SHOP["ingress"] | {"domain": "a.b"}}, "ingress.domain: unknown key; did you mean 'domains'?"),
        ({"processes": {"web": {"prt": 1}}}, "processes.web.prt: unknown key; did you mean 'port'?"),
        ({"image": "ghcr.io/you/shop:1.0"}, "no tag and no digest.*did you mean 'ghcr.io/you/shop'"),
        ({"image": "Not An Image"}, "not the name of a container image"),
        ({"ingress": SHOP["ingress"] | {"domains": ["https://shop.example.org"]}}, "not a domain name.*did you mean"),
        ({"ingress": SHOP["ingress"] | {"node_port": 80}}, "node_port = 80: too small; allowed: 30000 or more"),
        ({"ingress": SHOP["ingress"] | {"redirects": ["shop.example.org"]}}, "is in domains or redirects twice"),
        (
            {"ingress": SHOP["ingress"] | {"audience": "operator", "trusted_proxies": "cloudflare"}},
            "trusted_proxies: only for audience 'public'",
        ),
        ({"ingress": SHOP["ingress"] | {"process": "api"}}, "ingress.process is 'api'; allowed: web"),
        ({"processes": {"web": {}}}, "ingress.process: name one of the processes with a port: none"),
        (
            {"processes": {"web": {"port": 1}, "admin": {"port": 2}}},
            "name one of the processes with a port: admin, web",
        ),
        ({"health": None}, "health: missing; a service with an ingress needs"),
        ({"alerts": {"rules": "shop.rules.yml"}}, "alerts.rules: .*shop.rules.yml does not exist"),
        ({"alerts": {"checks": "../x"}}, "alerts.checks = '../x'"),
        ({"alerts": {"pages": {"a": {"path": "x"}}}}, "alerts.pages.a.path = 'x': not a path of a URL"),
        (
            {
                "alerts": {"pages": {"a": {"path": "/"}}},
                "ingress": SHOP["ingress"] | {"authentication": {"basic": {"user": "me"}}},
            },
            "requested without a login",
        ),
        ({"health": {"live": "healthz", "ready": "/x"}}, "health.live = 'healthz': not a path of a URL"),
        (
            {"cron": {"web": {"schedule": "0 3 * * *", "command": ["x"], "alert_after": "26h"}}},
            "a process has the same",
        ),
        ({"cron": {"night": {"schedule": "0 25 * * *", "alert_after": "26h"}}}, "hour is '25'; allowed: 0 to 23"),
        ({"cron": {"night": {"schedule": "daily", "alert_after": "26h"}}}, "not a cron expression: five fields"),
        ({"cron": {"night": {"schedule": "0 3 * * *", "alert_after": "often"}}}, "not a duration"),
        ({"processes": {"migrate": {"port": 1}}}, "'migrate' is a name that minipc uses itself"),
        (
            {"environment": {"URL": "{postgres.name}"}},
            r"\{postgres.name\} is not known; allowed: .*\{postgres.database\}",
        ),
        ({"environment": {"KEY": "{secret.STRIPE}"}}, r"\{secret.STRIPE\} is not known; add STRIPE to `secrets`"),
        ({"environment": {"CACHE": "{redis.host}"}}, "and the service has no `redis`"),
        ({"environment": {"A-B": "1"}}, "not the name of an environment variable"),
        ({"secrets": ["KEY"], "environment": {"KEY": "1"}}, "environment.KEY: it is also in secrets"),
        ({"postgres": None, "data_classes": {"evidence": {"t": None}}}, "the service has no `postgres`"),
        ({"data_classes": {"important": {"t": None}}}, "must recover"),
        ({"data_classes": {"evidence": {"t": None}, "outbox": {"t": None}}}, "'t' is in"),
        ({"data_classes": {"evidence": {"a.b.c": None}}}, "not a table; allowed: NAME or SCHEMA.NAME"),
        ({"drill": [{"name": "q", "sql": "SELECT 1", "expect": "1"}]}, "drill.0.expect = '1'"),
        ({"smoke": [{"name": "q"}]}, "exactly one of request and command"),
        ({"volumes": {"up": {"mount": "data", "size_gb": 1, "data_class": "evidence"}}}, "not an absolute path"),
        ({"volumes": {"up": {"mount": "/a/../..", "size_gb": 1, "data_class": "evidence"}}}, "not an absolute path"),
        (
            {"volumes": {"up": {"mount": "/d", "size_gb": 1, "data_class": "evidence", "processes": ["job"]}}},
            "volumes.up.processes: 'job' is not one of web",
        ),
        ({"user": 0}, "user = 0: too small; allowed: 1 or more"),
    ],
)
def test_a_mistake_is_explained_with_key_value_and_what_is_allowed(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, **changes)


@pytest.mark.parametrize("table", ["users", "Users", "billing.invoices", 'with "quotes"', "naïve"])
def test_any_table_of_a_user_is_accepted(tmp_path, table):
    read(tmp_path, data_classes={"must recover": {table: None}})


@pytest.mark.parametrize(
    ("changes", "claimed"),
    [
        ({"ingress": SHOP["ingress"] | {"node_port": 30101}}, "domain shop.example.org"),
        ({"ingress": {"domains": ["b.example.org"], "node_port": 30100}}, "node_port 30100"),
        ({"ingress": {"domains": ["b.example.org"], "redirects": ["shop.example.org"], "node_port": 1}}, "too small"),
        ({"ingress": {"domains": ["b.example.org"], "node_port": 30101}}, "database shop"),
        (
            {
                "ingress": {"domains": ["b.example.org"], "node_port": 30101},
                "postgres": {"database": "b", "runtime": "shop"},
            },
            "role shop",
        ),
    ],
)
def test_two_services_do_not_claim_the_same(tmp_path, changes, claimed):
    write(tmp_path, "shop", SHOP)
    write(tmp_path, "other", SHOP | changes)
    with pytest.raises(ConfigError, match=claimed):
        services.read([tmp_path])


@pytest.mark.parametrize("name", ["Shop", "9shop", "argocd", "root", "a_b", "shop-"])
def test_the_name_must_be_usable_everywhere(tmp_path, name):
    with pytest.raises(ConfigError, match=r"is not a name for a service|belongs to the platform"):
        services.read_file(write(tmp_path, name, SHOP))


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "is not valid YAML"), ("", "contains no keys"), ("- a", "no keys")]
)
def test_a_file_that_is_no_description_is_refused(tmp_path, text, said):
    path = tmp_path / "shop.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        services.read_file(path)


def test_a_machine_without_services_has_valid_settings(tmp_path):
    settings = load("lab", services_folders=[str(tmp_path)])
    assert settings.services.declared == ()
    assert [role.name for role in settings.postgres.roles] == ["monitoring"]


def test_settings_follow_from_the_files(tmp_path):
    write(tmp_path, "shop", SHOP | {"redis": {"kind": "cache"}, "data_classes": {"evidence": {"Users": "created_at"}}})
    settings = load("lab", services_folders=[str(tmp_path)])
    assert [each.name for each in settings.postgres.databases] == ["shop"]
    assert [(user.name, user.keys) for user in settings.redis.users][:1] == [("shop", ["shop:*"])]
    assert "Users" in settings.services.declared[0].data_classes["evidence"]


def test_a_domain_of_a_service_that_is_in_no_zone_is_refused(tmp_path):
    """Names of the public only: for the operator there are no records."""
    write(tmp_path, "shop", SHOP | {"ingress": SHOP["ingress"] | {"redirects": ["www.shop.example.net"]}})
    given = {"services_folders": [str(tmp_path)], "dns_provider": "cloudflare", "dns_zone": "example.org"}
    with pytest.raises(ConfigError, match=r"'www.shop.example.net' is not in the zone 'example.org'"):
        load("lab", **given)
    write(tmp_path, "shop", SHOP | {"ingress": SHOP["ingress"] | {"audience": "operator"}})
    write(tmp_path, "other", SHOP | {"ingress": {"domains": ["o.example.org"], "node_port": 30101}, "postgres": None})
    assert load("lab", **given).dns.zone == "example.org"


def test_an_unknown_service_is_named_with_the_known_ones(tmp_path):
    write(tmp_path, "shop", SHOP)
    with pytest.raises(ConfigError, match="no service 'shp'; there are: shop"):
        load("lab", services_folders=[str(tmp_path)]).services.named("shp")


def test_the_shipped_configuration_reads_its_folders():
    for group in ("lab", "production"):
        assert parse(group_data(group) | {"host_operator_keys": [], "vpn_peers": []}, source=group).services.folders
