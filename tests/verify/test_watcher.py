"""Checks of the external monitor on the off-site host. Its alerts are tested in tests/lab."""

from __future__ import annotations

import json

import pytest

from minipc.checks.probes import outside
from minipc.core.addresses import bracketed
from minipc.secrets import ed25519, load
from minipc.secrets.catalogue import TLS_KEY, WATCHER_CLIENT_KEY, WATCHER_PASSWORD
from tests.verify.conftest import eventually, not_exercised

RECEIVER = "minipc-watcher.service"
UNITS = [
    RECEIVER,
    *(f"prometheus{name}.service" for name in ("", "-alertmanager", "-node-exporter", "-blackbox-exporter")),
]
ETC = "/etc/minipc/watcher"


@pytest.fixture(scope="session")
def ask(sh):
    """Return a function that calls the API of the Prometheus that monitors this host."""
    return lambda path: json.loads(sh(f"curl -sS --globoff --noproxy '*' 'http://127.0.0.1:9090/api/v1/{path}'"))[
        "data"
    ]


@pytest.fixture
def sends(environment, settings, public, tmp_path):
    """Return a function that sends an empty batch of metrics as a client, and returns the status; 0: no connection."""
    found = load(environment.name, [TLS_KEY, WATCHER_CLIENT_KEY, WATCHER_PASSWORD])
    address = settings.offsite.address or public.ipv4
    files = {
        "ca": ed25519.certificate(found[TLS_KEY], address),
        "cert": ed25519.certificate(found[WATCHER_CLIENT_KEY], "minipc", client=True),
        "key": ed25519.pem(found[WATCHER_CLIENT_KEY]),
        "stranger": ed25519.certificate(found[TLS_KEY], "minipc", client=True),
        "stranger.key": ed25519.pem(found[TLS_KEY]),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)

    def send(certificate="cert", key="key", password=None):
        password = found[WATCHER_PASSWORD].reveal() if password is None else password
        # The password is not in the command line.
        lines = [f'url = "https://{bracketed(address)}:{settings.watcher.port}/api/v1/write"', 'data = ""']
        lines += [f'cert = "{tmp_path / certificate}"', f'key = "{tmp_path / key}"'] if certificate else []
        lines += [f'user = "minipc:{password}"'] if password else []
        argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "10"]
        done = public.run(*argv, "--cacert", str(tmp_path / "ca"), "--config", "-", stdin="\n".join(lines) + "\n")
        return int(done.stdout or 0)

    return send


def test_it_asks_the_public_addresses(ask, settings):
    """The external monitor requests every public service from outside."""
    wanted = {probe.url for probes in outside(settings).values() for probe in probes}
    if not wanted:
        not_exercised("no service is public")
    targets = [each for each in ask("targets?state=active")["activeTargets"] if each["labels"]["job"] == "outside"]
    assert {each["labels"]["instance"] for each in targets} == wanted


def test_it_measures_its_own_host(ask):
    """The external monitor measures the off-site host: its disk, its units and the copies of the backups."""

    def down():
        targets = ask("targets?state=active")["activeTargets"]
        return [each["labels"]["job"] for each in targets if each["health"] != "up"]

    assert eventually(lambda: not down(), within_s=80, every_s=2), down()
    assert eventually(lambda: ask("query?query=node_filesystem_avail_bytes")["result"], within_s=60, every_s=2)
    assert ask('query?query=node_systemd_unit_state{name="minipc-watcher.service",state="active"}==1')["result"]


def test_every_rule_can_be_computed(ask):
    """Every alert rule of the external monitor can be evaluated."""
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert {"ServiceUnreachable", "NothingMeasured", "ReceiverDown", "Watchdog"} <= {rule["name"] for rule in rules}
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] == "err"] == []


def test_its_alerts_reach_alertmanager(sh):
    """Both servers of the external monitor can hand their alerts to Alertmanager."""
    assert eventually(lambda: "Watchdog" in _active(sh), within_s=60, every_s=2), _active(sh)
    log = "journalctl -u minipc-watcher -o cat --since=-5min | grep 'Error sending alerts' || true"
    assert sh(log) == ""


def _active(sh):
    password = "$(cat /etc/prometheus/minipc/alertmanager.password)"
    login = f'printf \'user = "operator:%s"\\n\' "{password}"'
    return sh(f"{login} | curl -sS --noproxy '*' --config - http://127.0.0.1:9093/api/v2/alerts")


def test_only_the_mini_pc_sends_metrics(sends):
    """The receiver of metrics accepts only the mini PC's certificate together with its password."""
    assert sends() in (200, 204, 400)
    assert sends(password="wrong") == 401
    assert sends(password="") == 401
    assert sends(certificate="") == 0
    assert sends(certificate="stranger", key="stranger.key") == 0


def test_only_the_receiver_is_reachable(listeners, settings):
    """Of the external monitor, only the receiver of metrics listens on the public side."""
    ours = {(address, port) for address, port, program in listeners if program.startswith("prometheus")}
    assert {port for address, port in ours if address != "127.0.0.1"} == {settings.watcher.port}


def test_its_secrets_are_its_own(sh):
    """Only the receiver's own account can read its secrets."""
    files = " ".join(f"{ETC}/{name}" for name in ("tls.key", "web.yml", "alertmanager.password"))
    assert sh(f"stat -c '%U %a' {files}").splitlines() == ["minipc-watcher 600"] * 3


@pytest.mark.parametrize("name", UNITS)
def test_the_units_start_at_boot_bounded_and_confined(units, exposure, name):
    """The unit starts at boot, has a memory limit and runs with few privileges."""
    unit = units(name)
    user = "minipc-watcher" if name == RECEIVER else "prometheus"
    assert (unit["ActiveState"], unit["UnitFileState"], unit["Restart"]) == ("active", "enabled", "always")
    assert unit["User"] == user
    assert unit["Slice"] == "minipc-monitoring.slice"
    assert int(unit["MemoryHigh"]) < int(unit["MemoryMax"])
    assert exposure(name) < 3


def test_all_of_it_uses_at_most_250_mb(sh):
    """All programs of the external monitor together use at most 250 MB of memory."""
    shares = sh("cat $(pgrep -f '^/usr/bin/prometheus' | sed 's|.*|/proc/&/smaps_rollup|') | awk '/^Pss:/ {print $2}'")
    assert len(shares.split()) == len(UNITS)
    assert sum(map(int, shares.split())) // 1024 <= 250
    limit = sh("systemctl show --property=MemoryMax --value minipc-monitoring.slice")
    assert int(limit) <= 250 * 1024**2
