"""Test the ingress with five small services of a test: every option that a service file can declare.

A separate machine has VPN, firewall and ingress. Instead of containers, one Python program answers for each service.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from minipc.core.environment import LAB
from minipc.core.polling import wait_until
from minipc.core.variables import SERVICE_VARIABLE, SERVICES_VARIABLE
from minipc.secrets import open_store
from minipc.secrets.catalogue import ingress_password
from minipc.secrets.generate import generate
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab import tunnel
from rehearsal.lab.inventory import entry
from rehearsal.lab.network import CLIENT_HOST, PUBLIC
from tests.lab.conftest import on, run
from tests.verify.conftest import Answer, parse_answer
from tests.verify.test_edge import TALK

PASSWORD = "opensesame-opensesame"
CLIENT = PUBLIC.ipv4_of(CLIENT_HOST)
PROCESSES = {"web": {"port": 8000, "metrics": {"port": 8000}}}
HEALTH = {"live": "/live", "ready": "/ready"}
AUTHENTICATION_PORT = 30999
SERVICES: dict[str, dict[str, Any]] = {
    "shop": {
        "health": HEALTH | {"before_writes": "/writable"},
        "ingress": {
            "domains": ["shop.minipc.test", "market.minipc.test"],
            "redirects": ["www.shop.minipc.test"],
            "node_port": 30101,
            "body_limit_mb": 1,
            # The client on the public side is a proxy.
            "trusted_proxies": [f"{CLIENT}/32"],
        },
    },
    "strict": {
        "ingress": {
            "domains": ["strict.minipc.test"],
            "node_port": 30102,
            "headers": "strict",
            "response_limit_s": 3,
        }
    },
    "stream": {
        "ingress": {
            "domains": ["stream.minipc.test"],
            "node_port": 30103,
            "response_limit_s": None,
            "requests_per_s": 3,
        }
    },
    "admin": {
        "ingress": {
            "domains": ["admin.minipc.test"],
            "node_port": 30104,
            "audience": "operator",
            "authentication": {"basic": {"user": "ada"}},
        }
    },
    "asks": {
        "ingress": {
            "domains": ["asks.minipc.test"],
            "node_port": 30105,
            "authentication": {
                "forward": {"url": f"http://127.0.0.1:{AUTHENTICATION_PORT}/verify", "copy_headers": ["Remote-User"]}
            },
        }
    },
}
# Answers with what it received, as a service that sets headers and an authentication server.
BACKEND = """
import http.server, json, os, sys, time
class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments):
        pass
    def answer(self):
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = self.chunks() if "Transfer-Encoding" in self.headers else self.rfile.read(length)
        if body is None or len(body) < length:
            self.close_connection = True
            return
        if path == "/writable" and os.path.exists("/run/not-writable"):
            return self.send(503)
        if path == "/verify":
            allowed = self.headers.get("X-Token") == "right"
            return self.send(204 if allowed else 403, {"Remote-User": "ada"} if self.headers.get("X-Name") else {})
        if path.startswith("/wait/"):
            time.sleep(float(path.split("/")[2]))
        if path.startswith("/stream/"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(int(path.split("/")[2])):
                self.wfile.write(b"data: %d\\n\\n" % number)
                self.wfile.flush()
                time.sleep(1)
            return
        received = {"method": self.command, "bytes": len(body), "headers": dict(self.headers)}
        own = {"X-Frame-Options": "ALLOW-FROM https://example.org", "Server": "Test/1", "X-Request-ID": "mine"}
        self.send(200, own, json.dumps(received).encode())
    def chunks(self):
        body = b""
        while True:
            line = self.rfile.readline()
            if not line:
                return None
            body += self.rfile.read(int(line, 16))
            self.rfile.readline()
            if int(line, 16) == 0:
                return body
    def send(self, status, headers={}, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
UNIT = """[Service]
ExecStart=/usr/bin/python3 /root/backend.py {port}
"""


class Site:
    """The machine, and requests to it."""

    def __init__(self, machine: lab.Machine, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        self.env = {SERVICES_VARIABLE: str(folder)}
        self.ca = folder / "ca.pem"

    def converge(self, *deploys: str) -> str:
        files = [f"deploys/{name}.py" for name in deploys]
        done = run("pyinfra", "-y", "--limit", self.machine.name, "inventory/lab.py", *files, env=self.env)
        assert done.code == 0, done.output
        return done.output

    def get(self, name: str, path: str, *options: str, side: str = "public", at: str | None = None) -> Answer:
        """Send a request to a service; its certificate is verified."""
        domain = f"{name}.minipc.test"
        address = at or self.machine.public_ipv4
        argv = ["curl", "-sSi", "--noproxy", "*", "--max-time", "30", "--path-as-is", "--cacert", str(self.ca)]
        argv += ["--header", "Expect:", "--resolve", f"{domain}:443:{address}", *options, f"https://{domain}{path}"]
        said = run_in(side, *argv)
        return parse_answer(said) if said.startswith("HTTP/") else Answer(0, {}, said)

    def received(self, name: str, path: str, *options: str, **where: str) -> dict[str, Any]:
        """Send a request; return what the service received, header names in lower case."""
        answer = self.get(name, path, *options, **where)
        assert answer.code == 200, answer
        found = answer.json()
        return found | {"headers": {key.lower(): value for key, value in found["headers"].items()}}


def run_in(side: str, *argv: str) -> str:
    """Run a program in the namespace of a side; return what it printed."""
    done = subprocess.run(["ip", "netns", "exec", side, *argv], capture_output=True, text=True, timeout=90)
    return done.stdout or done.stderr


@pytest.fixture(scope="module")
def site(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("services")
    for name, values in SERVICES.items():
        described = {"image": f"example.org/{name}", "user": 1000, "processes": PROCESSES, "health": HEALTH} | values
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(described))
    generate("lab")
    open_store("lab").set_many({ingress_password("admin"): PASSWORD})
    with lab.machine(f"ingress-{os.getpid()}") as machine:
        adopt(LAB, entry(machine), machine.host_key_fingerprint)
        found = Site(machine, folder)
        found.converge("host", "vpn", "firewall", "edge")
        units = {f"minipc-{name}-web": values["ingress"]["node_port"] for name, values in SERVICES.items()}
        files = "\n".join(
            f"printf %s {shlex.quote(UNIT.format(port=port))} > /etc/systemd/system/{unit}.service\n"
            f"systemctl start {unit}"
            for unit, port in {**units, "authentication": AUTHENTICATION_PORT}.items()
        )
        on(machine, f"cat > /root/backend.py <<'END'\n{BACKEND}\nEND\n{files}")
        found.ca.write_text(on(machine, "cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"))
        assert wait_until(lambda: found.get("shop", "/live").code == 200, 30), found.get("shop", "/live")
        tunnel.up(machine)
        yield found


# --- headers, domains ------------------------------------------------------------------------------------------------


def test_the_services_own_headers_win_and_missing_ones_are_added(site: Site) -> None:
    headers = site.get("shop", "/").headers
    assert headers["x-frame-options"] == "ALLOW-FROM https://example.org"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["strict-transport-security"].startswith("max-age=")
    assert "content-security-policy" not in headers, "no value suits every service"
    assert "server" not in headers
    assert headers["x-request-id"] != "mine", "the request id is the ingress's"
    assert site.get("strict", "/").headers["x-frame-options"] == "DENY"
    assert "default-src 'self'" in site.get("strict", "/").headers["content-security-policy"]


def test_domains_are_served_and_redirects_lead_to_the_first(site: Site) -> None:
    assert site.get("market", "/live").code == 200
    found = site.get("www.shop", "/a?b=c")
    assert (found.code, found.headers["location"]) == (308, "https://shop.minipc.test/a?b=c")


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_stream_without_a_limit_is_not_cut_by_the_limit_of_another_service(site: Site) -> None:
    seconds = 14  # The limit of `strict` is 3 s for the answer and 5 s for the request.
    assert site.get("stream", f"/stream/{seconds}").body.count("data:") == seconds
    assert 3 < site.get("strict", f"/stream/{seconds}").body.count("data:") < seconds
    late = site.get("strict", "/wait/6")
    assert (late.code, "Back soon" in late.body) == (503, True)
    assert site.get("stream", "/wait/6").code == 200


def test_a_stream_arrives_as_it_is_sent(site: Site) -> None:
    began = time.monotonic()
    found = site.get("stream", "/stream/30", "--compressed", "--max-time", "3")
    assert "data: 0" in found.body, found
    assert time.monotonic() - began < 10


# --- writes ----------------------------------------------------------------------------------------------------------


def test_writes_wait_for_the_declared_path_and_options_does_not(site: Site) -> None:
    on(site.machine, "touch /run/not-writable")
    try:
        assert wait_until(lambda: site.get("shop", "/", "--request", "PUT").code == 503, 15)
        codes = {method: site.get("shop", "/", "--request", method).code for method in ("POST", "DELETE", "OPTIONS")}
        assert codes == {"POST": 503, "DELETE": 503, "OPTIONS": 200}
        assert site.get("shop", "/").code == 200
        assert site.get("strict", "/", "--request", "POST").code == 200, "it declares no before_writes"
    finally:
        on(site.machine, "rm /run/not-writable")
    assert wait_until(lambda: site.get("shop", "/", "--request", "PUT").code == 200, 15)


@pytest.mark.parametrize("how", [(), ("--http1.1", "--header", "Transfer-Encoding: chunked")], ids=["sized", "chunked"])
def test_the_body_limit_is_the_services_own(site: Site, tmp_path: Path, how: tuple[str, ...]) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(1_000_001))
    found = site.get("shop", "/", *how, "--data-binary", f"@{body}")
    assert found.code == 413, found
    assert site.received("strict", "/", "--data-binary", f"@{body}")["bytes"] == 1_000_001
    body.write_bytes(bytes(999_999))
    assert site.received("shop", "/", "--data-binary", f"@{body}")["bytes"] == 999_999


def test_an_upload_that_is_cut_off_is_not_acknowledged(site: Site) -> None:
    start = "POST / HTTP/1.1\\r\\nHost: strict.minipc.test\\r\\nContent-Length: 50\\r\\n\\r\\nhalf"
    found = run_in(
        "public", sys.executable, "-c", TALK, site.machine.public_ipv4, "strict.minipc.test", start, "", "30"
    )
    assert found.strip() == "HTTP/1.1 408 Request Timeout", found
    (line,) = on(site.machine, "grep '\"status\":408' /var/log/caddy/access.log | tail -n 1").splitlines()
    assert json.loads(line)["request"]["method"] == "POST"


# --- clients and proxies ---------------------------------------------------------------------------------------------


def test_the_client_behind_a_trusted_proxy_is_known_and_nobody_else_is_believed(site: Site) -> None:
    forged = ["X-Real-IP: 192.0.2.66", "Forwarded: for=192.0.2.66", "X-Request-ID: forged", "X-Rewrite-Url: /metrics"]
    forged += ["X-Forwarded-Host: evil.example", "X-Original-Url: /metrics", "X-Forwarded-For: 192.0.2.66, 192.0.2.7"]
    options = [word for header in forged for word in ("--header", header)]
    identifier = site.get("shop", "/", *options).headers["x-request-id"]
    trusted, direct = (site.received(name, "/", *options)["headers"] for name in ("shop", "strict"))
    assert (trusted["x-real-ip"], trusted["x-forwarded-for"]) == ("192.0.2.7", "192.0.2.7")
    assert (direct["x-real-ip"], direct["x-forwarded-for"]) == (CLIENT, CLIENT)
    for headers, domain in ((trusted, "shop.minipc.test"), (direct, "strict.minipc.test")):
        assert (headers["x-forwarded-host"], headers["x-forwarded-proto"]) == (domain, "https")
        assert not {"forwarded", "x-rewrite-url", "x-original-url"} & set(headers)
        assert "192.0.2.66" not in str(headers)
        assert headers["x-request-id"] != "forged"
    log = wait_until(lambda: on(site.machine, f"grep -F {identifier} /var/log/caddy/access.log || true"), 5)
    logged = json.loads(log)
    assert (logged["client_ip"], logged["request"]["remote_ip"]) == ("192.0.2.7", CLIENT)


def test_the_firewalls_limits_for_clients_spare_the_proxy(site: Site) -> None:
    rules = on(site.machine, "nft list chain inet minipc public")
    assert rules.index(f"ip saddr {CLIENT} accept") < rules.index("ct count over")


def test_the_request_rate_is_limited_for_each_client_over_one_http2_connection_too(site: Site) -> None:
    urls = [f"https://stream.minipc.test/live?{number}" for number in range(45)]
    outputs = [word for _ in urls for word in ("--output", "/dev/null")]
    argv = ["curl", "-sS", "--noproxy", "*", "--http2", "--cacert", str(site.ca), *outputs]
    argv += ["--resolve", f"stream.minipc.test:443:{site.machine.public_ipv4}"]
    argv += ["--write-out", "%{http_code} %{num_connects} %{http_version}\n", *urls]
    answers = [line.split() for line in run_in("public", *argv).splitlines()]
    assert sum(int(connects) for _, connects, _ in answers) == 1, "one connection"
    codes = [code for code, *_ in answers]
    assert set(codes) == {"200", "429"}, codes
    assert 20 < codes.count("200") <= 31, "about three a second in ten seconds"
    assert site.get("shop", "/").code == 200, "another service has no limit, or another one"
    # In the operator's namespace the client has another address.
    other = site.get("stream", "/live", side="operator", at=site.machine.operator_ipv4)
    assert other.code == 200, "another client has its own count"
    assert wait_until(lambda: site.get("stream", "/live").code == 200, 40, every_s=2)


# --- who may ---------------------------------------------------------------------------------------------------------


def test_a_service_for_the_operator_is_reached_in_the_vpn_with_the_password(site: Site) -> None:
    inside = {"side": "operator", "at": tunnel.addresses(site.machine.index, 1)[0]}
    assert site.get("admin", "/", **inside).code == 401
    assert site.get("admin", "/", "--user", "ada:wrong", **inside).code == 401
    found = site.received("admin", "/", "--user", f"ada:{PASSWORD}", **inside)
    assert "authorization" not in found["headers"], "the service does not learn the password"
    assert site.get("admin", "/").code == 0, "the public side has no such name"
    assert site.get("admin", "/", side="operator", at=site.machine.operator_ipv4).code == 0


def test_the_password_is_nowhere_in_plain_text(site: Site) -> None:
    pattern = f"[{PASSWORD[0]}]{PASSWORD[1:]}"  # does not match itself in the command line of grep
    script = f"grep -rl '{pattern}' /etc /run /var /tmp /root; grep -laz '{pattern}' /proc/[0-9]*/cmdline"
    assert on(site.machine, f"({script}) 2>/dev/null || true") == ""


def test_the_authentication_server_decides_and_its_headers_cannot_be_forged(site: Site) -> None:
    assert site.get("asks", "/", "--header", "Remote-User: eve").code == 403
    right = ("--header", "X-Token: right", "--header", "Remote-User: eve")
    assert "remote-user" not in site.received("asks", "/", *right)["headers"]
    assert site.received("asks", "/", *right, "--header", "X-Name: yes")["headers"]["remote-user"] == "ada"
    on(site.machine, "systemctl stop authentication")
    try:
        assert site.get("asks", "/", *right).code == 503, "without an answer nobody passes"
    finally:
        on(site.machine, "systemctl start authentication")


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shop", "stream", "admin"])
def test_the_checks_of_the_ingress_pass(site: Site, name: str) -> None:
    env = {**site.env, SERVICE_VARIABLE: name}
    done = run("minipc", "verify", "edge", "--inventory", "lab", "--host", site.machine.name, env=env)
    assert done.code == 0, done.output


def test_a_second_converge_changes_nothing(site: Site) -> None:
    output = site.converge("firewall", "edge")
    changed = [int(number) for number in re.findall(r"Changed\D*(\d+)", output)]
    assert not any(changed), output


def test_without_services_only_the_maintenance_page_is_left(site: Site) -> None:
    for path in site.folder.glob("*.yaml"):
        path.unlink()
    site.converge("firewall", "edge")
    found = parse_answer(run_in("public", "curl", "-sSi", "--noproxy", "*", f"http://{site.machine.public_ipv4}/"))
    assert (found.code, "Back soon" in found.body) == (503, True)
    units = "caddy-operator minipc-request-rate"
    assert on(site.machine, f"systemctl is-active {units} || true").split() == ["inactive"] * 2
    assert on(site.machine, "ss -Hltn 'sport = 443 or sport = 10443'") == ""
    assert "10443" not in on(site.machine, "nft list table inet minipc")
    done = run("minipc", "verify", "edge", "--inventory", "lab", "--host", site.machine.name, env=site.env)
    assert done.code == 0, done.output
