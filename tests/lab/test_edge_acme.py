"""Test certificates from an ACME server: Debian's pebble on a separate machine, on the public side."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from minipc.core.environment import LAB
from minipc.core.paths import ROOT
from minipc.remote import certificates
from minipc.remote.inventory import the_target
from rehearsal import lab
from tests.lab.conftest import converge, on, run
from tests.verify.conftest import eventually

PUBLIC = ("ip", "netns", "exec", "public")
STATE = "/var/lib/caddy/.local/share/caddy"
PORT, MANAGEMENT, DNS = 14000, 15000, 8053
# Long enough for what is done with one, short enough to see it run out.
LIFETIME_S = 45
WITHIN_S = 45


@dataclass
class Acme:
    """The ACME server.

    Attributes:
        domain: of the service that needs a certificate; live is its path that answers.
        root: certificate (PEM) that its API is trusted by.
    """

    machine: lab.Machine
    domain: str
    live: str
    root: str

    @property
    def url(self) -> str:
        return f"https://{self.machine.public_ipv4}:{PORT}/dir"

    def start(self, *refused: str) -> None:
        """Start or restart it. It forgets everything from before. It refuses the names in `refused`."""
        settings = {
            "listenAddress": f"0.0.0.0:{PORT}",
            "managementListenAddress": f"0.0.0.0:{MANAGEMENT}",
            "certificate": "/root/acme.crt",
            "privateKey": "/root/acme.key",
            "httpPort": 80,
            "tlsPort": 443,
            "domainBlocklist": list(refused),
            # None: pebble sends a date at random, which Caddy 2.6 doesn't understand. Public servers send seconds.
            "retryAfter": {"authz": -1, "order": -1},
            "certificateValidityPeriod": LIFETIME_S,
        }
        # Without its habit of waiting, and of refusing at random what is right.
        habits = "--setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0"
        unit = f"systemd-run --quiet --collect --unit=pebble {habits}"
        self.stop()
        on(
            self.machine,
            f"cat > /root/pebble.json <<'END'\n{json.dumps({'pebble': settings})}\nEND\n"
            f"{unit} pebble -config /root/pebble.json -dnsserver 127.0.0.1:{DNS}\n"
            f"for i in $(seq 100); do curl -ks https://127.0.0.1:{PORT}/dir && exit; sleep 0.1; done; exit 1",
        )

    def stop(self) -> None:
        on(self.machine, "systemctl stop pebble 2>/dev/null || true")

    def authority(self) -> str:
        """Return its root certificate, which is new after each start."""
        return on(self.machine, f"curl -ks https://127.0.0.1:{MANAGEMENT}/roots/0")


@pytest.fixture(scope="module")
def acme(site: lab.Machine) -> Iterator[Acme]:
    with lab.machine(f"acme-{site.name}"[:32]) as machine:
        address = machine.public_ipv4
        on(
            machine,
            "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; apt-get -qq install -y pebble openssl curl\n"
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=acme "
            f"-addext subjectAltName=IP:{address} -keyout /root/acme.key -out /root/acme.crt 2>/dev/null\n"
            # The public name leads to the machine's public address, for anyone who asks here.
            "systemd-run --quiet --collect --unit=names pebble-challtestsrv "
            f"-defaultIPv4 {site.public_ipv4} -defaultIPv6 '' -dns01 127.0.0.1:{DNS} "
            "-http01 '' -https01 '' -tlsalpn01 ''",
            timeout_s=300,
        )
        service = the_target(LAB, site.name).settings.services.public[0]
        assert service.health
        yield Acme(machine, service.ingress.domains[0], service.health.live, on(machine, "cat /root/acme.crt"))


def edge_with(site: lab.Machine, inventory, **settings: object) -> None:
    """Converge the public ingress with other settings."""
    path = str(inventory(site, **settings))
    done = run("pyinfra", "-y", path, "deploys/edge.py", timeout_s=300)
    assert done.code == 0, done.output


def shown(site: lab.Machine, domain: str) -> x509.Certificate | None:
    return certificates.served(site.public_ipv4, domain, PUBLIC)


def issuer(certificate: x509.Certificate | None) -> str:
    return certificate.issuer.rfc4514_string() if certificate else ""


def answers(site: lab.Machine, acme: Acme, ca: Path) -> str:
    """Return the status of a request to the public name, with a verified certificate."""
    at = ["--resolve", f"{acme.domain}:443:{site.public_ipv4}", "--cacert", str(ca)]
    curl = [*PUBLIC, "curl", "-sS", "--max-time", "10", "--noproxy", "*", *at, "-o", "/dev/null", "-w", "%{http_code}"]
    return subprocess.run(
        [*curl, f"https://{acme.domain}{acme.live}"], capture_output=True, text=True, timeout=20
    ).stdout


def over_http3(site: lab.Machine, acme: Acme, ca: Path) -> str:
    """Return the status of the same request over HTTP/3."""
    client = [
        *PUBLIC,
        sys.executable,
        "-m",
        "tests.verify.http3_client",
        site.public_ipv4,
        acme.domain,
        acme.live,
        str(ca),
    ]
    done = subprocess.run(client, capture_output=True, text=True, timeout=30, cwd=ROOT)
    return done.stdout.strip() or done.stderr


def try_again(site: lab.Machine) -> None:
    """Make Caddy ask at once, with a new account, because the ACME server forgets its accounts."""
    on(site, f"systemctl stop caddy; rm -r {STATE}/acme; systemctl start caddy")


def said(site: lab.Machine, since: float) -> str:
    return on(site, f"journalctl -u caddy -o cat --since @{int(since)}")


@pytest.mark.timeout(400, func_only=True)
def test_certificates_come_from_the_acme_server_and_outlast_it(site, acme, inventory, tmp_path) -> None:
    try:
        _refused_then_issued_then_renewed(site, acme, inventory, tmp_path)
    finally:
        assert converge(site, "edge").code == 0
        on(site, f"rm -rf {STATE}/acme {STATE}/certificates/{acme.machine.public_ipv4}*")
    assert eventually(lambda: "Caddy Local" in issuer(shown(site, acme.domain)), within_s=WITHIN_S)
    # HTTP/3 has a certificate store of its own, which must not be left behind.
    ca = tmp_path / "internal.pem"
    ca.write_text(on(site, f"cat {STATE}/pki/authorities/local/root.crt"))
    assert over_http3(site, acme, ca) == "200"


def _refused_then_issued_then_renewed(site, acme, inventory, tmp_path) -> None:
    # It refuses: the converge ends well, port 80 serves, and the log says why in the server's own words.
    acme.start(acme.domain)
    began = time.time()
    edge_with(site, inventory, edge_acme="other", edge_acme_url=acme.url, edge_acme_root=acme.root)
    assert eventually(lambda: "rejectedIdentifier" in said(site, began), within_s=WITHIN_S), said(site, began)
    assert on(site, "systemctl is-active caddy").strip() == "active"
    assert "Pebble" not in issuer(shown(site, acme.domain))

    # It issues, over HTTP or TLS to the public address.
    acme.start()
    try_again(site)
    assert eventually(lambda: "Pebble" in issuer(shown(site, acme.domain)), within_s=WITHIN_S), said(site, began)
    first = shown(site, acme.domain)
    ca = tmp_path / "ca.pem"
    ca.write_text(acme.authority())
    assert answers(site, acme, ca) == "200"

    # It is down when a renewal is due: what is there is served on, and the log says what is wrong.
    acme.stop()
    until = first.not_valid_before_utc.timestamp() + LIFETIME_S * 0.7
    time.sleep(max(0.0, until - time.time()))
    began = time.time()
    on(site, "systemctl restart caddy")
    assert eventually(lambda: "connection refused" in said(site, began), within_s=WITHIN_S), said(site, began)
    assert shown(site, acme.domain) == first

    # It is back: the next try brings a new one.
    acme.start()
    try_again(site)
    renewed = eventually(
        lambda: (now := shown(site, acme.domain)) and now.serial_number != first.serial_number and now,
        within_s=WITHIN_S,
    )
    assert renewed, said(site, began)
    assert "Pebble" in issuer(renewed)
