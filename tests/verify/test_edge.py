"""Caddy: the public door, as a client on the public side sees it, and what it hands on and writes down."""

from __future__ import annotations

import importlib.util
import json
import re
import secrets as random
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from minipc import certificates
from tests.verify.conftest import eventually, not_exercised

LOG = "/var/log/caddy/access.log"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
SECURITY_HEADERS = {
    "strict-transport-security": r"max-age=\d{8}",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "strict-origin",
    "content-security-policy": "default-src 'self'",
    "permissions-policy": "camera=",
}
# A request that the API refuses, but only the API.
WRITE = ("/api/events", "--header", "Content-Type: application/json", "--data-binary", "{}")
# A check that has to wait for a limit waits no longer than this for what may follow it.
LONGEST_WAIT_S = 15
# Stands in for the API: answers with the headers that reached it.
ECHO = """
import http.server, json, sys
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""
# The path of the metrics, as someone might write it who wants to get past a rule.
METRICS = [
    "/metrics",
    "/metrics/",
    "//metrics",
    "/%6detrics",
    "/%6D%65trics",
    "/metrics?x=1",
    "/METRICS",
    "/./metrics",
    "/api/../metrics",
    "/api/%2e%2e/metrics",
    "/metrics%2f",
    "/metrics/x",
    "/metrics%00",
    "/metrics;x",
    "/metrics%20",
    "/api//../metrics",
]


@pytest.fixture(scope="session")
def door(edge, settings, sh):
    """One ordinary answer: the API's, or the maintenance page where K3s could not be had."""
    deployed = settings.workload.runtime == "stand-in" or sh("ls /usr/local/bin/k3s 2>/dev/null || true")
    wanted = 200 if deployed else 503
    found = eventually(lambda: (answer := edge.get("/api/livez")).code == wanted and answer, within_s=15)
    assert found, f"not {wanted}: {edge.get('/api/livez')}"
    return found


@pytest.fixture(scope="session")
def home(service, door):
    """The API's answer."""
    return door


@pytest.fixture(scope="session")
def logged(sh):
    """The access log's entry for a request id."""

    def find(request_id):
        lines = eventually(lambda: sh(f"grep -F {request_id} {LOG} || true"), within_s=3)
        assert lines, f"{request_id} is not in {LOG}"
        return json.loads(lines.splitlines()[0])

    return find


def test_the_certificate_is_valid(door, edge):
    assert "certificate" in edge.get("/api/livez", "--cacert", "/dev/null", "--capath", "/dev/null").body


def test_a_certificate_is_there_and_renewed_in_time(edge, sh, settings):
    found = eventually(lambda: certificates.served(edge.side.ipv4, edge.domain, edge.side.prefix), within_s=15)
    assert found, f"no certificate is shown for {edge.domain}. Caddy says: {what_caddy_says(sh)}"
    lifetime = found.not_valid_after_utc - found.not_valid_before_utc
    left = found.not_valid_after_utc - datetime.now(UTC)
    # Caddy renews when a third is left; with less than a quarter it has tried for long, in vain.
    assert left > lifetime / 4, f"{left} of {lifetime} are left. Caddy says: {what_caddy_says(sh)}"


def what_caddy_says(sh):
    """Why there is no (new) certificate, in the words of the ACME server."""
    wanted = "journalctl -u caddy -o cat -n 2000 | grep -E 'could not get certificate|will retry' | tail -n 1"
    line = sh(f"{wanted} || true")
    return json.loads(line).get("error", line) if line.startswith("{") else "nothing"


def test_the_api_answers(home):
    assert (home.code, home.json()) == (200, {"status": "ok"})


def test_ipv6_is_answered_as_well(door, edge):
    if not edge.side.ipv6:
        not_exercised("the inventory knows no IPv6 address of the machine")
    assert edge.get("/api/livez", address=edge.side.ipv6).code == door.code


def test_http_leads_to_https(edge):
    found = edge.get("/api/livez?a=b", scheme="http")
    assert found.code in (301, 308)
    assert found.headers["location"] == f"https://{edge.domain}/api/livez?a=b"


def test_http2_is_spoken(door, edge):
    argv = ["curl", "--silent", "--noproxy", "*", *edge.to(edge.side.ipv4), "--output", "/dev/null"]
    assert edge.side.run(*argv, "--write-out", "%{http_version}", f"https://{edge.domain}/api/livez").stdout == "2"


def test_http3_is_spoken_where_it_is_configured_and_only_there(door, edge, settings):
    if importlib.util.find_spec("aioquic") is None:
        not_exercised("the HTTP/3 client (aioquic) is not installed: `make setup` brings it")
    client = [sys.executable, "-m", "tests.verify.http3_client"]
    ca_file = edge.trust[-1] if edge.trust else ""
    found = [edge.side.run(*client, address, edge.domain, "/api/livez", ca_file) for address in edge.side.addresses]
    advertised = "h3" in door.headers.get("alt-svc", "")
    if settings.edge.http3:
        assert [each.stdout.strip() for each in found] == [str(door.code)] * len(found), found
        assert advertised
    else:
        assert [each.stdout for each in found] == [""] * len(found), found
        assert not advertised


def test_old_tls_is_refused(door, edge):
    """Without the client's own limits, so that it is the server that refuses."""
    lax = ["--ciphers", "DEFAULT@SECLEVEL=0", "--tlsv1.0", "--tls-max"]
    assert edge.get("/api/livez", *lax, "1.2").code == door.code
    for version in ("1.0", "1.1"):
        found = edge.get("/api/livez", *lax, version)
        assert (found.code, "alert protocol version" in found.body) == (0, True), found


def test_security_headers_are_on_every_answer(door, edge):
    for answer in (door, edge.get("/api/nothing"), edge.get("/metrics")):
        for name, pattern in SECURITY_HEADERS.items():
            assert re.match(pattern, answer.headers.get(name, "")), f"{name} of {answer}"


def test_the_server_does_not_say_what_it_is(door, edge):
    for answer in (door, edge.get("/metrics"), edge.get("/", scheme="http")):
        assert "server" not in answer.headers
        assert "caddy" not in str(answer).lower()
        assert "uvicorn" not in str(answer).lower()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_metrics_stay_inside(door, edge, method):
    # HTTP/1.1 and a connection each: nothing between us and the server tidies the path up.
    options = ["--http1.1", *(["--head"] if method == "HEAD" else ["--request", method])]
    answers = {path: edge.get(path, *options) for path in METRICS}
    assert {path: answer.code for path, answer in answers.items() if answer.code not in (400, 404, 405, 503)} == {}
    assert [path for path, answer in answers.items() if "http_request" in answer.body] == []


def test_every_request_has_an_id_that_the_client_does_not_choose(edge, door, logged):
    forged = f"forged-{random.token_hex(6)}"
    ids = [
        edge.get(path, "--header", f"X-Request-ID: {forged}").headers["x-request-id"]
        for path in ("/api/livez", "/api/livez", "/metrics", "/api/nothing")
    ]
    assert all(re.fullmatch(UUID, each) for each in ids)
    assert len({*ids, door.headers["x-request-id"]}) == 5
    assert forged not in json.dumps(logged(ids[0])), "whoever looks for an id finds what Caddy gave it to"


def test_the_access_log_tells_who_what_and_how_long(edge, door, logged, environment):
    secret = random.token_hex(12)
    headers = ["--header", f"Authorization: Bearer {secret}", "--header", f"Cookie: session={secret}"]
    identifier = edge.get("/metrics?q=1", *headers).headers["x-request-id"]
    entry = logged(identifier)
    assert (entry["request"]["method"], entry["request"]["uri"]) == ("GET", "/metrics?q=1")
    assert (entry["status"], entry["request"]["host"]) == (404, edge.domain)
    assert 0 < entry["duration"] < 15
    assert entry["ts"] > 1_700_000_000
    assert secret not in json.dumps(entry)
    client = edge.side.run("ip", "-o", "route", "get", edge.side.ipv4).stdout
    if environment == "lab":
        assert f"src {entry['request']['remote_ip']} " in client


def test_the_access_log_has_what_the_log_stack_reads(edge, door, logged):
    entry = logged(edge.get("/api/nothing?q=1").headers["x-request-id"])
    request = entry["request"]
    assert {"ts", "status", "duration", "size", "request", "resp_headers"} <= set(entry)
    assert {"remote_ip", "remote_port", "proto", "method", "host", "uri", "headers"} <= set(request)
    assert entry["logger"].split(".")[:3] == ["http", "log", "access"]
    assert re.fullmatch(UUID, entry["resp_headers"]["X-Request-Id"][0])
    # What is the same in every line is left out.
    assert not {"tls"} & set(request)
    assert not {"Strict-Transport-Security", "Content-Security-Policy"} & set(entry["resp_headers"])


def test_the_access_log_is_private(sh):
    assert sh("stat -c '%U %a' /var/log/caddy") == "caddy 750"


def test_another_host_name_gets_nothing_of_the_service(door, edge):
    for options in (["--http1.1"], ["--http2"]):
        found = edge.get("/api/livez", *options, "--header", "Host: other.example")
        assert (found.code, found.body) == (421, "")
    assert edge.get("/api/livez", "--header", "Host: other.example", scheme="http").code == 404
    # By address, without a name: no certificate is shown.
    unnamed = edge.side.run("curl", "--silent", "--show-error", "--insecure", f"https://{edge.side.ipv4}/api/livez")
    assert (unnamed.stdout, "alert" in unnamed.stderr) == ("", True)


@pytest.mark.parametrize("how", [(), ("--header", "Transfer-Encoding: chunked", "--http1.1")], ids=["sized", "chunked"])
def test_too_large_a_request_is_refused_and_harms_nobody_else(home, edge, tmp_path, how, settings):
    large = tmp_path / "large"
    large.write_bytes(bytes(settings.edge.max_body_mb * 1_000_000 + 1))
    options = ["--header", "Content-Type: application/json", "--data-binary", f"@{large}"]
    assert edge.get("/api/events", *how, *options).code == 413
    assert edge.get("/api/livez").code == 200
    # One that it may send gets as far as the API.
    assert edge.get(*WRITE).code == 422


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_client_that_is_slow_on_purpose_is_cut_off(door, edge, settings, part):
    """It sends a byte now and then, so that only a limit for the whole ends it."""
    limit_s = settings.edge.header_timeout_s if part == "head" else settings.edge.body_timeout_s
    if limit_s > LONGEST_WAIT_S:
        not_exercised(f"it would take {limit_s} s; the lab has shorter limits")
    start = f"POST /api/events HTTP/1.1\r\nHost: {edge.domain}\r\n"
    if part == "body":
        start += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    client = f"""
import socket, ssl, time
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
connection = socket.create_connection(("{edge.side.ipv4}", 443), 5)
with context.wrap_socket(connection, server_hostname="{edge.domain}") as client:
    client.sendall({start!r}.encode())
    client.settimeout(0.5)
    give_up_at = time.monotonic() + {limit_s} + {LONGEST_WAIT_S}
    said = b""
    try:
        while time.monotonic() < give_up_at:
            client.sendall(b"x")
            try:
                received = client.recv(4096)
            except TimeoutError:
                continue
            if not received:
                break
            said += received
        else:
            print("still open")
    except OSError:
        pass
    print("closed", said.split(b"\\r\\n")[0])
"""
    done = edge.side.run(sys.executable, "-c", client, timeout_s=limit_s + 2 * LONGEST_WAIT_S)
    assert done.stdout.startswith("closed"), done
    assert edge.get("/api/livez").code == door.code


def test_a_client_that_hangs_up_shuts_the_door_for_nobody(home, edge):
    request = f"POST /api/events HTTP/1.1\\r\\nHost: {edge.domain}\\r\\nContent-Length: 9000\\r\\n\\r\\nhalf"
    hang_up = f"""
import socket, ssl
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for _ in range(3):
    connection = socket.create_connection(("{edge.side.ipv4}", 443), 5)
    with context.wrap_socket(connection, server_hostname="{edge.domain}") as client:
        client.sendall(b"{request}")
"""
    done = edge.side.run("python3", "-c", hang_up)
    assert done.returncode == 0, done.stderr
    assert edge.get(*WRITE).code == 422


def test_the_api_learns_who_asks_from_the_door_and_not_from_the_client(home, edge, disturb, settings, environment):
    forged = ["X-Forwarded-For", "X-Real-IP", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Request-ID"]
    headers = [word for name in forged for word in ("--header", f"{name}: 192.0.2.66")]
    if settings.workload.runtime == "k3s":
        not_exercised("the cluster keeps the API's port: nothing that repeats what it gets can take its place")
    disturb("systemctl stop workload-api")
    try:
        disturb(
            f"systemd-run --quiet --unit=verify-echo /usr/bin/python3 -c {shlex.quote(ECHO)} {settings.workload.port}"
        )
        answer = eventually(lambda: (found := edge.get("/api/livez", *headers)).code == 200 and found, within_s=10)
    finally:
        disturb("systemctl stop verify-echo; systemctl start workload-api")
    assert answer, "the stand-in for the API was not reached"
    handed_on = {name.lower(): value for name, value in answer.json().items()}
    assert "192.0.2.66" not in str(handed_on)
    assert (handed_on["x-forwarded-proto"], handed_on["x-forwarded-host"]) == ("https", edge.domain)
    assert handed_on["x-request-id"] == answer.headers["x-request-id"]
    assert handed_on["x-real-ip"] == handed_on["x-forwarded-for"]
    if environment == "lab":
        assert f"src {handed_on['x-real-ip']} " in edge.side.run("ip", "-o", "route", "get", edge.side.ipv4).stdout
    assert eventually(lambda: edge.get(*WRITE).code == 422, within_s=20), "the API is not back"


def test_its_control_socket_is_its_own(sh, listeners, settings):
    found = {(address if address == "127.0.0.1" else "*", port) for address, port, name in listeners if name == "caddy"}
    assert found == {("*", 80), ("*", 443), ("127.0.0.1", 9180)}
    assert sh("stat -c '%U %a %F' /run/caddy/admin.sock") == "caddy 700 socket"


def test_what_runs_is_what_is_configured(sh):
    running = "curl -s --unix-socket /run/caddy/admin.sock --header 'Host;' http://localhost/config/"
    wanted = "caddy adapt --config /etc/caddy/Caddyfile --adapter caddyfile 2>/dev/null"
    assert json.loads(sh(running)) == json.loads(sh(wanted))


def test_the_unit_starts_at_boot_and_has_only_what_it_needs(units, exposure):
    unit = units("caddy.service")
    assert (unit["UnitFileState"], unit["Restart"], unit["User"]) == ("enabled", "always", "caddy")
    assert exposure("caddy.service") < 2.5


def test_a_write_goes_from_the_public_to_the_database(home, edge, sql):
    body = {"kind": "verify.edge", "payload": {"mark": random.token_hex(8)}}
    answer = edge.get("/api/events", "--header", "Content-Type: application/json", "--data", json.dumps(body))
    try:
        assert answer.code == 201, answer
        row = json.loads(sql(f"SELECT row_to_json(e) FROM app_events e WHERE id = {answer.json()['id']}", "workload"))
        assert (row["kind"], row["payload"]) == (body["kind"], body["payload"])
        assert row["request_id"] == answer.headers["x-request-id"]
    finally:
        sql("DELETE FROM app_events WHERE kind = 'verify.edge'", "workload")


def test_a_maintenance_page_stands_in_for_a_stopped_api(home, edge, disturb, service):
    service.stop(disturb, "api")
    try:
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(edge.get, path, *options) for path, *options in (["/api/parking"], WRITE)]
    finally:
        service.start(disturb, "api")
    for answer in (each.result() for each in answers):
        assert answer.code == 503
        assert "Back soon" in answer.body
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch(UUID, answer.headers["x-request-id"])
        assert "server" not in answer.headers
    assert eventually(lambda: edge.get("/api/livez").code == 200, within_s=15)
    assert eventually(lambda: edge.get(*WRITE).code == 422, within_s=15), "still no writes"


def test_it_is_shut_by_hand_without_a_reload_and_opened_again(home, edge, disturb):
    disturb("touch /etc/caddy/closed")
    try:
        shut = [edge.get("/api/livez"), edge.get(*WRITE)]
    finally:
        disturb("rm /etc/caddy/closed")
    assert [(answer.code, "Back soon" in answer.body) for answer in shut] == [(503, True)] * 2
    assert edge.get("/api/livez").code == 200


def test_screens_and_verdict_reach_the_public_while_the_database_is_down(home, edge, disturb):
    assert eventually(lambda: edge.get("/api/parking").code == 200, within_s=75, every_s=1)
    disturb("systemctl stop postgresql@17-main")
    try:
        write = eventually(lambda: (found := edge.get(*WRITE)).code == 503 and found, within_s=10)
        screen, verdict = edge.get("/api/parking"), edge.get("/api/health")
    finally:
        disturb("systemctl start postgresql@17-main")
    assert "Back soon" in write.body
    assert (screen.code, bool(screen.json()["items"])) == (200, True)
    assert (verdict.code, verdict.json()["db"]) == (503, "down")
    assert eventually(lambda: edge.get(*WRITE).code == 422, within_s=30), "still no writes"
    assert eventually(lambda: edge.get("/api/health").code == 200, within_s=30)
