"""The ingress of declared services: the Caddyfile, accepted by the real Caddy, and the paths that are never served."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from minipc.config import Settings, load
from minipc.config.service import Service
from minipc.pyinfra_ext.operations.files import File, render
from minipc.secrets import Secret
from minipc.secrets.hashing import hashed
from minipc.services import ingress
from tests.unit.deploy_run import run_deploys

DEBS = Path.home() / ".cache/minipc/debs"
ORDINARY = [
    "/",
    "/healthz",
    "/metrics-board",
    "/metricsx",
    "/metrics_2",
    "/api/metrics",
    "/v1/charts/metrics.json",
    "/a..b/c",
    "/.well-known/acme-challenge/x",
    "/files/%D0%B6.txt?next=/metrics",
    "/search?q=../..",
    "/emetrics",
]


def service(name: str = "shop", **ingress_keys: Any) -> Service:
    port = 30000 + sum(name.encode()) % 2700
    return Service.model_validate(
        {
            "name": name,
            "image": f"example.org/{name}",
            "user": 1000,
            "processes": {"web": {"port": 8000, "metrics": {"port": 8000, "path": "/internal/Prometheus"}}},
            "health": {
                "live": "/live",
                "ready": "/ready",
                "before_writes": ingress_keys.pop("before_writes", None),
            },
            "ingress": {"domains": [f"{name}.example.org"], "node_port": port, **ingress_keys},
        }
    )


EVERYTHING = (
    service("everything", redirects=["www.example.org"], headers="strict", before_writes="/writable"),
    service("limits", response_limit_s=None, body_limit_mb=3, requests_per_s=2, trusted_proxies="cloudflare"),
    service("asks", authentication={"basic": {"user": "ada"}}),
    service("hidden", audience="operator", authentication={"basic": {"user": "ada"}}, redirects=["old.example.org"]),
    service(
        "asks-another",
        authentication={"forward": {"url": "https://sso.example.org/verify?x=1", "copy_headers": ["Remote-User"]}},
    ),
)


def settings(services: tuple[Service, ...], **values: Any) -> Settings:
    found = load("lab", host_operator_keys=[], **values)
    return found.model_copy(update={"services": found.services.model_copy(update={"declared": services})})


def caddyfile(services: tuple[Service, ...], *, for_operator: bool = False, **values: Any) -> str:
    given = ingress.caddyfile_values(settings(services, **values), for_operator=for_operator)
    return text("Caddyfile.j2", **given)


def text(template: str, **values: Any) -> str:
    entry = render("edge", File(template, "/x"), values)
    assert isinstance(entry, File)
    assert entry.content is not None
    return entry.content.decode()


@pytest.fixture(scope="session")
def caddy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of Caddy: the controller's, or the one that the lab installs."""
    found = shutil.which("caddy")
    debs = sorted(DEBS.glob("caddy_*_amd64.deb"))
    if found is None and debs and shutil.which("dpkg-deb"):
        folder = tmp_path_factory.mktemp("caddy")
        subprocess.run(["dpkg-deb", "-x", str(debs[-1]), str(folder)], check=True)
        found = str(folder / "usr/bin/caddy")
    if found is None:
        pytest.skip("NOT EXERCISED: there is no Caddy here, and the lab has downloaded none")
    return found


@pytest.mark.parametrize("for_operator", [False, True])
@pytest.mark.parametrize("services", [(), (service(),), EVERYTHING], ids=["none", "one", "everything"])
def test_the_real_caddy_accepts_it(caddy, tmp_path, services, for_operator) -> None:
    asking = [site for site in ingress.sites(services) if site.basic]
    hashes = {site.name: hashed(Secret("shop.ingress_password", "opensesame"), site.name) for site in asking}
    (tmp_path / "passwords").write_text(text("passwords.j2", sites=asking, hashes=hashes))
    config = caddyfile(services, for_operator=for_operator).replace(ingress.PASSWORDS, str(tmp_path / "passwords"))
    (tmp_path / "Caddyfile").write_text(config.replace("/var/log/caddy", str(tmp_path)))
    env = {**os.environ, "HOME": str(tmp_path)}
    argv = [caddy, "validate", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    argv[1] = "adapt"
    adapted = json.loads(subprocess.run(argv, capture_output=True, text=True, env=env, check=True).stdout)
    servers = {each["listen"][0]: each for each in adapted["apps"].get("http", {"servers": {}})["servers"].values()}
    # No limit for answers where everybody is served: it would be that of all services.
    assert not any("write_timeout" in server for listen, server in servers.items() if not listen.startswith("unix"))
    inner = {Path(key).stem.removeprefix("site-"): each for key, each in servers.items() if key.startswith("unix")}
    for name, server in inner.items():
        assert ("write_timeout" in server) == (name != "limits"), name
        public = servers[":10443" if for_operator else ":443"]
        assert server["read_timeout"] < public["read_timeout"], "the inner server gives up first"


def test_the_public_ingress_does_not_know_the_operators_names() -> None:
    public, operators = caddyfile(EVERYTHING), caddyfile(EVERYTHING, for_operator=True)
    for name in ("hidden.example.org", "old.example.org"):
        assert name not in public
        assert f"https://{name}:10443" in operators
    assert "http://hidden" not in operators, "a redirect would tell that it exists"
    assert not re.findall(r"(?:limits|asks|everything)\.example\.org", operators)
    assert "tls internal" in operators


def test_each_option_is_there_where_it_is_declared_and_only_there() -> None:
    plain, everything = caddyfile((service(),)), caddyfile(EVERYTHING)
    for option in ("health_uri", "basicauth", "forward_auth", "import password_", "@proxied", "client_ip"):
        assert option not in plain
    assert everything.count("health_uri /writable") == 1
    assert everything.count("import password_asks") == 1
    assert everything.count("forward_auth https://sso.example.org:443") == 1
    assert "uri /verify?x=1" in everything
    assert "max_size 3MB" in everything
    assert everything.count("import strict_headers") == 3, "errors, the redirect, and the service that wants them"
    assert "redir https://everything.example.org{uri} 308" in everything
    assert "method GET HEAD OPTIONS" in everything, "OPTIONS is not a write"


def test_no_service_gets_the_control_socket() -> None:
    for for_operator in (False, True):
        services = (service("admin", audience="operator" if for_operator else "public"),)
        found = caddyfile(services, for_operator=for_operator)
        assert len(re.findall(r"unix//run/\S+/admin\.sock", found)) == 1, "the name of a service is free"


def test_no_service_no_site() -> None:
    found = caddyfile(())
    assert "maintenance" in found
    assert "https://" not in found.replace("https://{host}", "")
    assert "bind unix" not in found


def test_the_request_rate_is_counted_for_each_service_that_declares_it() -> None:
    sites = [site for site in ingress.sites(EVERYTHING) if site.ingress.requests_per_s]
    found = text("request-rate.cfg.j2", sites=sites)
    assert re.findall(r"^frontend (\S+)$", found, re.M) == ["limits"]
    assert "gt 20 }" in found, "twenty in ten seconds"


def test_cloudflares_networks_are_networks() -> None:
    assert len({ip_network(each) for each in ingress.CLOUDFLARE}) == 22
    assert ingress.trusted_proxies(EVERYTHING) == list(ingress.CLOUDFLARE)
    assert ingress.trusted_proxies([service(trusted_proxies=["192.0.2.0/24"]), service()]) == ["192.0.2.0/24"]


@pytest.mark.parametrize("path", ["/metrics", "/internal/Prometheus"])
def test_an_attacker_finds_no_spelling_of_the_metrics(path) -> None:
    hidden = re.compile(ingress.sites([service()])[0].hidden)
    dots = re.compile(ingress.DOT_SEGMENTS)
    served = [each for each in ingress.unusual_spellings(path) if not hidden.search(each) and not dots.search(each)]
    assert served == []


@pytest.mark.parametrize("uri", ORDINARY)
def test_ordinary_paths_are_served(uri) -> None:
    assert not re.search(ingress.sites([service()])[0].hidden, uri)
    assert not re.search(ingress.DOT_SEGMENTS, uri)


def test_a_hash_tells_nothing_about_the_password_but_itself() -> None:
    first, other = (hashed(Secret("shop.ingress_password", each), "lab shop") for each in ("opensesame", "closesesame"))
    assert first[:29] == other[:29], "the salt is that of the purpose, not derived from the password"
    assert first != other
    assert first[:29] != hashed(Secret("shop.ingress_password", "opensesame"), "lab other")[:29]


def test_the_deploy_starts_what_is_declared_and_removes_the_rest(monkeypatch, tmp_path) -> None:
    for each in EVERYTHING:
        values = each.model_dump(exclude={"name", "folder"}, exclude_defaults=True)
        (tmp_path / f"{each.name}.yaml").write_text(yaml.safe_dump(values))
    for folder, starts in ((tmp_path, True), (tmp_path / "none", False)):
        monkeypatch.setenv("MINIPC_SERVICES", str(folder))
        names = {name for component, name in run_deploys(monkeypatch).operations if component == "edge"}
        assert ("Start the ingress for the operator" in names) is starts
        assert ("Start the request rate limit" in names) is starts
        assert ("Disable the request rate limit" in names) is not starts
        assert "Start Caddy" in names
