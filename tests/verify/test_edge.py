"""Checks of Caddy, the ingress, as a client on the public side or in the VPN sees it, and of its access log.

They need nothing of a service but the paths in its file.
"""

from __future__ import annotations

import importlib.util
import json
import re
import secrets as random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from minipc.core.ports import MONITORING, OPERATOR_INGRESS
from minipc.remote import certificates
from minipc.services import ingress as sites
from tests.verify.conftest import Answer, Edge, eventually, not_exercised, parse_answer

LOG = "/var/log/caddy/access.log"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
EVERYWHERE = {"x-content-type-options": r"nosniff", "referrer-policy": r".+", "x-frame-options": r".+"}
"""Response headers of every service."""
STRICT = {
    **EVERYWHERE,
    "x-frame-options": r"DENY",
    "referrer-policy": r"strict-origin",
    "content-security-policy": r"default-src 'self'",
    "permissions-policy": r"camera=",
}
"""Response headers of the ingress itself, and of a service that declares `headers: strict`."""
# A check that has to wait for a limit waits no longer than this for what may follow it.
LONGEST_WAIT_S = 15
LARGEST_UPLOAD_MB = 100
# Closed by the client half-way: sent as it is over TLS.
TALK = """
import socket, ssl, sys, time
address, name, first, more, limit_s = sys.argv[1], sys.argv[2], sys.argv[3].encode(), sys.argv[4], float(sys.argv[5])
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
received = b""
with context.wrap_socket(socket.create_connection((address, 443), 5), server_hostname=name) as client:
    client.sendall(first.decode("unicode_escape").encode())
    client.settimeout(0.5)
    give_up_at = time.monotonic() + limit_s
    while time.monotonic() < give_up_at:
        try:
            if more:
                client.sendall(more.encode())
            part = client.recv(4096)
        except TimeoutError:
            continue
        except OSError:
            break
        if not part:
            break
        received += part
    else:
        print("still open", end=" ")
print(received.split(b"\\r\\n")[0].decode())
"""


class PatientEdge(Edge):
    """Requests of checks that are not about the request rate: they wait when they were too many."""

    def get(self, path: str, *options: str, scheme: str = "https", address: str | None = None) -> Answer:
        found = super().get(path, *options, scheme=scheme, address=address)
        for _ in range(5):
            if found.code != 429:
                break
            time.sleep(5)
            found = super().get(path, *options, scheme=scheme, address=address)
        return found


@pytest.fixture(scope="session")
def edge(edge):
    """Return the ingress of the service, as a patient client on the public side sees it."""
    return PatientEdge(edge.side, edge.domain, edge.trust[-1] if edge.trust else None)


@pytest.fixture(scope="session")
def live(service):
    """Return the path that answers while the service works."""
    return service.file.health.live


@pytest.fixture(scope="session")
def asked(service, live):
    """Return the status of an ordinary request: 200, or what the ingress answers to strangers."""
    authentication = service.file.ingress.authentication
    return 200 if authentication is None else 401 if authentication.basic else None


@pytest.fixture(scope="session")
def ingress(edge, live, asked):
    """Return the answer to an ordinary request."""
    found = eventually(lambda: (answer := edge.get(live)).code == asked and answer, within_s=15)
    assert found or asked is None, f"not {asked}: {edge.get(live)}"
    return found or edge.get(live)


@pytest.fixture(scope="session")
def home(service, ingress):
    """Return the service's own answer. NOT EXERCISED where the ingress asks who it is."""
    if service.file.ingress.authentication:
        not_exercised(f"the ingress of {service.file.name} asks for authentication; the lab's test exercises it")
    return ingress


@pytest.fixture(scope="session")
def logged(sh):
    """Return a function that finds the access log's entry for a request id."""

    def find(request_id):
        lines = eventually(lambda: sh(f"grep -F {request_id} {LOG} || true"), within_s=3)
        assert lines, f"{request_id} is not in {LOG}"
        return json.loads(lines.splitlines()[0])

    return find


def maintenance(answer: Answer) -> bool:
    """Return whether an answer is the maintenance page."""
    return answer.code == 503 and "Back soon" in answer.body


def write(edge, live) -> Answer:
    """Send a write; the service's own answer is most likely a refusal."""
    return edge.get(live, "--header", "Content-Type: application/json", "--data-binary", "{}")


# --- certificate and protocols ---------------------------------------------------------------------------------------


def test_the_certificate_is_valid(ingress, edge, live):
    """The domain presents a certificate that a client can verify."""
    assert "certificate" in edge.get(live, "--cacert", "/dev/null", "--capath", "/dev/null").body


def test_a_certificate_is_there_and_renewed_in_time(edge, sh, service):
    """The certificates of all domains are not close to their expiry."""
    ours = service.file.ingress
    for domain in (*ours.domains, *ours.redirects):
        found = eventually(lambda: certificates.served(edge.side.ipv4, domain, edge.side.prefix), within_s=15)  # noqa: B023
        assert found, f"no certificate is shown for {domain}. Caddy says: {what_caddy_says(sh)}"
        lifetime = found.not_valid_after_utc - found.not_valid_before_utc
        left = found.not_valid_after_utc - datetime.now(UTC)
        # Caddy renews when a third is left; with less than a quarter it has tried for long, in vain.
        assert left > lifetime / 4, f"{domain}: {left} of {lifetime} are left. Caddy says: {what_caddy_says(sh)}"


def what_caddy_says(sh):
    """Return the last error of the ACME server, as Caddy logged it."""
    wanted = "journalctl -u caddy -o cat -n 2000 | grep -E 'could not get certificate|will retry' | tail -n 1"
    line = sh(f"{wanted} || true")
    return json.loads(line).get("error", line) if line.startswith("{") else "nothing"


def test_ipv6_is_answered_as_well(ingress, edge, live):
    """The ingress answers over IPv6."""
    if not edge.side.ipv6:
        not_exercised("the inventory knows no IPv6 address of the machine")
    assert edge.get(live, address=edge.side.ipv6).code == ingress.code


def test_http_leads_to_https(edge, live):
    """HTTP requests are redirected to HTTPS."""
    found = edge.get(f"{live}?a=b", scheme="http")
    assert found.code in (301, 308)
    assert found.headers["location"] == f"https://{edge.domain}{live}?a=b"


def test_other_domains_are_served_or_redirected(ingress, edge, live, service):
    """Every declared domain is served, and every declared redirect leads to the first domain."""
    ours = service.file.ingress
    if not ours.redirects and len(ours.domains) == 1:
        not_exercised(f"{service.file.name} has one domain and no redirects")
    for domain in ours.domains[1:]:
        assert named(edge, domain, live).code == ingress.code
    for domain in ours.redirects:
        found = named(edge, domain, f"{live}?a=b")
        assert (found.code, found.headers["location"]) == (308, f"https://{edge.domain}{live}?a=b")


def named(edge, domain: str, path: str, *options: str) -> Answer:
    """Send a request to another name than the service's first domain."""
    argv = ["curl", "-sSi", "--noproxy", "*", "--max-time", "15", *edge.trust, *options]
    done = edge.side.run(*argv, "--resolve", f"{domain}:443:{edge.side.ipv4}", f"https://{domain}{path}")
    return parse_answer(done.stdout) if done.stdout else Answer(0, {}, done.stderr.strip())


def test_http2_is_spoken(ingress, edge, live):
    """The ingress offers HTTP/2."""
    argv = ["curl", "--silent", "--noproxy", "*", *edge.to(edge.side.ipv4), "--output", "/dev/null"]
    assert edge.side.run(*argv, "--write-out", "%{http_version}", f"https://{edge.domain}{live}").stdout == "2"


def test_http3_is_spoken_where_it_is_configured_and_only_there(ingress, edge, live, settings):
    """HTTP/3 is offered if and only if it is configured."""
    if importlib.util.find_spec("aioquic") is None:
        not_exercised("the HTTP/3 client (aioquic) is not installed: `make setup` brings it")
    client = [sys.executable, "-m", "tests.verify.http3_client"]
    ca_file = edge.trust[-1] if edge.trust else ""
    found = [edge.side.run(*client, address, edge.domain, live, ca_file) for address in edge.side.addresses]
    advertised = "h3" in ingress.headers.get("alt-svc", "")
    if settings.edge.http3:
        assert [each.stdout.strip() for each in found] == [str(ingress.code)] * len(found), found
        assert advertised
    else:
        assert [each.stdout for each in found] == [""] * len(found), found
        assert not advertised


def test_old_tls_is_refused(ingress, edge, live):
    """TLS versions older than 1.2 are refused.

    The client's own limits are switched off, so that it is the server that refuses.
    """
    lax = ["--ciphers", "DEFAULT@SECLEVEL=0", "--tlsv1.0", "--tls-max"]
    assert edge.get(live, *lax, "1.2").code == ingress.code
    for version in ("1.0", "1.1"):
        found = edge.get(live, *lax, version)
        assert (found.code, "alert protocol version" in found.body) == (0, True), found


# --- headers, request id, access log ---------------------------------------------------------------------------------


def test_security_headers_are_on_every_answer(home, edge, settings, service):
    """Every response has the security headers: the service's, the added ones, or the strictest."""
    hsts = {"strict-transport-security": r"max-age=\d{6,}"} if settings.edge.hsts_days else {}
    wanted = STRICT if service.file.ingress.headers == "strict" else EVERYWHERE
    for answer in (home, edge.get("/metrics")):
        for name, pattern in {**wanted, **hsts}.items():
            assert re.match(pattern, answer.headers.get(name, "")), f"{name} of {answer}"


def test_the_server_does_not_say_what_it_is(ingress, edge):
    """Responses do not reveal the server software."""
    for answer in (ingress, edge.get("/metrics"), edge.get("/", scheme="http")):
        assert "server" not in answer.headers
        assert "caddy" not in str(answer).lower()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_metrics_stay_inside(ingress, edge, service, method):
    """The metrics cannot be read through the ingress, however their path is written."""
    paths = {"/metrics", *(each.metrics.path for each in service.file.processes.values() if each.metrics)}
    spelled = [way for path in sorted(paths) for way in sites.unusual_spellings(path)]
    # HTTP/1.1 and a connection each: nothing between us and the server tidies the path up.
    options = ["--http1.1", *(["--head"] if method == "HEAD" else ["--request", method])]
    with ThreadPoolExecutor(8) as pool:
        codes = dict(zip(spelled, pool.map(lambda path: edge.get(path, *options).code, spelled), strict=True))
    assert {path: code for path, code in codes.items() if code not in (400, 404)} == {}


def test_every_request_has_an_id_that_the_client_does_not_choose(edge, ingress, live, logged):
    """Every request gets a new request id that the client cannot choose."""
    forged = f"forged-{random.token_hex(6)}"
    ids = [
        edge.get(path, "--header", f"X-Request-ID: {forged}").headers["x-request-id"]
        for path in (live, live, "/metrics", "/minipc-nothing")
    ]
    assert all(re.fullmatch(UUID, each) for each in ids)
    assert len({*ids, ingress.headers["x-request-id"]}) == 5
    assert forged not in json.dumps(logged(ids[0])), "the client's own id is in the access log"


def test_the_access_log_tells_who_what_and_how_long(edge, ingress, logged, environment):
    """The access log contains client, request and duration, but no credentials."""
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
    if environment.has_public_client:
        assert f"src {entry['request']['remote_ip']} " in client


def test_the_access_log_has_what_the_log_stack_reads(edge, ingress, logged):
    """The access log has the fields that the log collection reads."""
    entry = logged(edge.get("/metrics?q=1").headers["x-request-id"])
    request = entry["request"]
    assert {"ts", "status", "duration", "size", "request", "resp_headers"} <= set(entry)
    assert {"remote_ip", "remote_port", "proto", "method", "host", "uri", "headers"} <= set(request)
    assert entry["logger"].split(".")[:3] == ["http", "log", "access"]
    assert re.fullmatch(UUID, entry["resp_headers"]["X-Request-Id"][0])
    # What is the same in every line is left out.
    assert not {"tls"} & set(request)
    assert not {"Strict-Transport-Security", "Content-Security-Policy"} & set(entry["resp_headers"])


def test_the_access_log_is_private(sh):
    """Only Caddy and root can read the access log."""
    assert sh("stat -c '%U %a' /var/log/caddy") == "caddy 750"


def test_another_host_name_gets_nothing_of_the_service(ingress, edge, live):
    """Requests for another host name do not reach the service."""
    for options in (["--http1.1"], ["--http2"]):
        found = edge.get(live, *options, "--header", "Host: other.example")
        assert (found.code, found.body) == (421, "")
    assert edge.get(live, "--header", "Host: other.example", scheme="http").code == 404
    # By address, without a name: no certificate is shown.
    unnamed = edge.side.run("curl", "--silent", "--show-error", "--insecure", f"https://{edge.side.ipv4}{live}")
    assert (unnamed.stdout, "alert" in unnamed.stderr) == ("", True)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [(), ("--header", "Transfer-Encoding: chunked", "--http1.1")], ids=["sized", "chunked"])
def test_too_large_a_request_is_refused_and_harms_nobody_else(home, edge, live, tmp_path, how, service):
    """A request that is too large is refused, and other requests are still answered."""
    limit_mb = service.file.ingress.body_limit_mb
    if limit_mb > LARGEST_UPLOAD_MB:
        not_exercised(f"{limit_mb} MB would have to be sent; the lab's test exercises a smaller limit")
    large = tmp_path / "large"
    large.write_bytes(bytes(limit_mb * 1_000_000 + 1))
    found = edge.get(live, *how, "--data-binary", f"@{large}")
    # A request of unknown size is refused before all of it has arrived, by service or ingress. If the connection
    # closes while the rest is still being sent, the answer can be lost: the ingress says 503, or curl no code at all.
    lost = found.code in (0, 503)
    assert found.code == 413 or (how and (lost or 400 <= found.code < 500)), found
    assert edge.get(live).code == 200


def test_clients_that_are_slow_on_purpose_are_cut_off(ingress, edge, live, settings):
    """Clients that send deliberately slowly are disconnected, and what they sent is not acknowledged.

    They send one byte at a time, or nothing more, so that only a limit for the whole request ends them.
    """
    limit_s = settings.edge.header_timeout_s + settings.edge.body_timeout_s + 5
    if limit_s > LONGEST_WAIT_S:
        not_exercised(f"it would take {limit_s} s; the lab has shorter limits")
    head = f"POST {live} HTTP/1.1\\r\\nHost: {edge.domain}\\r\\n"
    body = f"{head}Content-Type: application/json\\r\\nContent-Length: 1000\\r\\n\\r\\n"
    slow = {"head": (head, "x"), "body": (body, "x"), "body that stalls": (body, "")}

    def talk(first, more):
        client = (sys.executable, "-c", TALK, edge.side.ipv4, edge.domain, first, more, str(limit_s + LONGEST_WAIT_S))
        return edge.side.run(*client, timeout_s=limit_s + 2 * LONGEST_WAIT_S)

    with ThreadPoolExecutor() as pool:
        answers = dict(zip(slow, pool.map(lambda each: talk(*each), slow.values()), strict=True))
    for part, done in answers.items():
        assert done.returncode == 0, done.stderr
        answer = done.stdout.removeprefix("still open").strip()
        # Once the request is answered with an error, the connection is an idle one, and has the limit of those.
        assert answer or not done.stdout.startswith("still open"), f"a slow {part}"
        assert not re.match(r"HTTP/1.1 [23]", answer), f"{answer} to a request with a slow {part}"
    assert edge.get(live).code == ingress.code


def test_a_malformed_request_is_the_clients_mistake(home, edge, live):
    """A malformed request body is answered with a client error, so that it does not count as a failure of ours."""
    start = f"POST {live} HTTP/1.1\\r\\nHost: {edge.domain}\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\nzz\\r\\n"
    done = edge.side.run(sys.executable, "-c", TALK, edge.side.ipv4, edge.domain, start, "", "10")
    assert re.match(r"HTTP/1.1 4\d\d ", done.stdout), done


def test_a_client_that_disconnects_does_not_affect_others(home, edge, live):
    """A client that disconnects during a request does not affect other clients."""
    start = f"POST {live} HTTP/1.1\\r\\nHost: {edge.domain}\\r\\nContent-Length: 9000\\r\\n\\r\\nhalf"
    for _ in range(3):
        edge.side.run(sys.executable, "-c", TALK, edge.side.ipv4, edge.domain, start, "", "0")
    assert not maintenance(write(edge, live))
    assert edge.get(live).code == 200


def test_the_request_rate_of_a_client_is_limited(home, edge, live, service, environment):
    """A client that sends more requests than declared is answered 429."""
    limit = service.file.ingress.requests_per_s
    if limit is None:
        not_exercised(f"{service.file.name} declares no requests_per_s")
    if not environment.disposable or limit > 20:
        not_exercised(f"{10 * limit} requests would have to be sent; the lab's test exercises a smaller limit")
    answers = [Edge.get(edge, live).code for _ in range(10 * limit + 5)]
    assert answers[-1] == 429, answers
    assert edge.get(live).code == 200, "still refused"


# --- authentication and audience -------------------------------------------------------------------------------------


def test_strangers_do_not_reach_a_service_with_authentication(ingress, edge, live, service):
    """A service with authentication is not reached without it."""
    authentication = service.file.ingress.authentication
    if authentication is None:
        not_exercised(f"{service.file.name} declares no authentication")
    found = edge.get(live, "--header", "Authorization: Basic bm9ib2R5Om5vdGhpbmc=")
    assert not 200 <= found.code < 300, found


def test_a_service_for_the_operator_does_not_exist_for_the_public(service, public, settings):
    """A service for the operator does not exist for the public: no answer, no certificate, no redirect."""
    ours = service.file.ingress
    if ours is None or ours.audience != "operator":
        not_exercised(f"{service.file.name} is not for the operator only")
    domain, curl = ours.domains[0], ["curl", "-sS", "--insecure", "--noproxy", "*", "--max-time", "5"]
    for port in (443, OPERATOR_INGRESS):
        at = f"{domain}:{port}:{public.ipv4}"
        done = public.run(*curl, "--resolve", at, f"https://{domain}:{port}/")
        other = public.run(*curl, "--resolve", at.replace(domain, "no.example"), f"https://no.example:{port}/")
        said = [re.sub(r"\d+ m\w+", "", each.stderr).replace(domain, "no.example") for each in (done, other)]
        assert (done.stdout, said[0]) == ("", said[1]), "a name that exists is answered differently"
    if settings.services.public:
        argv = [*curl, "--header", f"Host: {domain}", "--write-out", "%{http_code}", f"http://{public.ipv4}/"]
        assert public.run(*argv).stdout == "404"


def test_a_service_for_the_operator_answers_in_the_vpn(service, tunnel):
    """A service for the operator answers in the VPN."""
    ours = service.file.ingress
    if ours is None or ours.audience != "operator":
        not_exercised(f"{service.file.name} is not for the operator only")
    domain = ours.domains[0]
    argv = ["curl", "-sS", "--insecure", "--noproxy", "*", "--max-time", "10", "--output", "/dev/null"]
    argv += ["--resolve", f"{domain}:443:{tunnel.ipv4}", "--write-out", "%{http_code}"]
    expected = "401" if ours.authentication and ours.authentication.basic else "200"
    live = f"https://{domain}{service.file.health.live}"
    assert eventually(lambda: tunnel.run(*argv, live).stdout == expected, within_s=15), tunnel.run(*argv, live)


# --- Caddy itself ----------------------------------------------------------------------------------------------------


def test_its_control_socket_is_its_own(sh, listeners, settings):
    """Only Caddy's own account can use its sockets, and it listens on no other ports."""
    found = {(address if address == "127.0.0.1" else "*", port) for address, port, name in listeners if name == "caddy"}
    wanted = {("*", 80), ("127.0.0.1", MONITORING["caddy"])}
    wanted |= {("*", 443)} if settings.services.public else set()
    assert found == wanted | ({("*", OPERATOR_INGRESS)} if settings.services.for_operator else set())
    for socket in ("admin", *(f"site-{each.name}" for each in settings.services.public)):
        assert sh(f"stat -c '%U %a %F' /run/caddy/{socket}.sock") == "caddy 700 socket"


def test_what_runs_is_what_is_configured(sh):
    """Caddy runs with the configuration that is on disk."""
    running = "curl -s --unix-socket /run/caddy/admin.sock --header 'Host;' http://localhost/config/"
    wanted = "caddy adapt --config /etc/caddy/Caddyfile --adapter caddyfile 2>/dev/null"
    assert json.loads(sh(running)) == json.loads(sh(wanted))


def test_no_password_is_on_the_machine(sh, settings):
    """Passwords of basic authentication are on the machine as bcrypt hashes only."""
    asking = [each for each in sites.sites(settings.services.declared) if each.basic]
    if not asking:
        not_exercised("no service declares basic authentication")
    assert sh(f"stat -c '%U %G %a' {sites.PASSWORDS}") == "root caddy 640"
    hashes = re.findall(r"^\s+[A-Za-z0-9._-]+ (\S+)$", sh(f"cat {sites.PASSWORDS}"), re.M)
    assert len(hashes) == len(asking)
    assert all(re.fullmatch(r"\$2b\$\d\d\$[./A-Za-z0-9]{53}", each) for each in hashes)


def test_the_unit_starts_at_boot_and_has_only_what_it_needs(units, exposure, settings):
    """Caddy starts at boot and runs with few privileges."""
    names = ["caddy.service"]
    names += ["caddy-operator.service"] if settings.services.for_operator else []
    for name in names:
        unit = units(name)
        assert (unit["UnitFileState"], unit["Restart"], unit["User"]) == ("enabled", "always", "caddy")
        assert exposure(name) < 2.5


def test_without_services_there_is_the_maintenance_page_and_nothing_else(public, settings):
    """Without services the ingress answers with the maintenance page only."""
    if settings.services.public:
        not_exercised("there is a public service")
    done = public.run("curl", "-sSi", "--noproxy", "*", "--max-time", "10", f"http://{public.ipv4}/")
    assert maintenance(parse_answer(done.stdout)), done


# --- maintenance -----------------------------------------------------------------------------------------------------


def test_a_maintenance_page_stands_in_for_a_stopped_service(home, edge, live, disturb, service):
    """A maintenance page is shown while the service is stopped."""
    front, _ = service.file.front
    service.stop(disturb, front)
    try:
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(edge.get, live), pool.submit(write, edge, live)]
    finally:
        service.start(disturb, front)
    for answer in (each.result() for each in answers):
        assert maintenance(answer), answer
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch(UUID, answer.headers["x-request-id"])
        assert "server" not in answer.headers
    assert eventually(lambda: edge.get(live).code == 200, within_s=service.file.health.start_limit_s)
    assert eventually(lambda: not maintenance(write(edge, live)), within_s=30), "still no writes"


def test_it_is_closed_by_hand_without_a_reload_and_opened_again(home, edge, live, disturb, service):
    """The operator can close and reopen the ingress without a reload, for all services or for one."""
    for name in ("closed", f"closed.{service.file.name}"):
        disturb(f"touch /etc/caddy/{name}")
        try:
            shut = [edge.get(live), write(edge, live)]
        finally:
            disturb(f"rm /etc/caddy/{name}")
        assert [maintenance(answer) for answer in shut] == [True, True]
    assert edge.get(live).code == 200


def test_reads_pass_and_writes_wait_while_the_database_is_down(home, edge, live, disturb, service):
    """While the database is stopped, reads and OPTIONS reach the service, and writes get the maintenance page."""
    if service.file.health.before_writes is None:
        not_exercised(f"{service.file.name} declares no before_writes")
    if service.file.postgres is None:
        not_exercised(f"{service.file.name} has no database")
    disturb("systemctl stop postgresql@17-main")
    try:
        refused = eventually(lambda: maintenance(write(edge, live)), within_s=10)
        read, options = edge.get(live), edge.get(live, "--request", "OPTIONS")
    finally:
        disturb("systemctl start postgresql@17-main")
    assert refused, "a write reached the service"
    assert read.code == 200
    assert not maintenance(options)
    assert eventually(lambda: not maintenance(write(edge, live)), within_s=30), "still no writes"
