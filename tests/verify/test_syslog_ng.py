"""Checks of syslog-ng: logs arrive in Loki with service, level and request id, and none is lost."""

from __future__ import annotations

import json
import re
import secrets as random

import pytest

from tests.verify.conftest import eventually, not_exercised
from tests.verify.logs import UNIT as LOKI
from tests.verify.logs import loki_there

UNIT = "syslog-ng.service"


@pytest.fixture(scope="session", autouse=True)
def loki(sh, settings):
    if settings.syslog_ng.loki_url:
        not_exercised(f"logs go to {settings.syslog_ng.loki_url}, which is not this machine")
    return loki_there(sh, settings.loki.port)


@pytest.fixture(scope="session")
def stats(sh):
    """Return a function for syslog-ng's counters of delivered, dropped and waiting messages."""

    def look():
        text = sh("syslog-ng-ctl stats prometheus")
        numbers = dict(re.findall(r'^syslogng_output_events_total\{driver="http".*result="(\w+)"\} (\d+)', text, re.M))
        waiting = re.search(r"^syslogng_disk_queue_events\{.*\} (\d+)", text, re.M)
        assert waiting, text
        return {name: int(value) for name, value in numbers.items()} | {"waiting": int(waiting[1])}

    return look


def found(loki, logql, count=1, within_s=20):
    """Return the lines that a query finds, after waiting until there are `count` of them."""
    eventually(lambda: len(loki.find(logql)) >= count, within_s=within_s, every_s=0.3)
    return loki.find(logql)


LEVELS = {"err": "error", "warning": "warn", "notice": "info"}


@pytest.fixture(scope="session")
def marks(sh):
    """Write one message of each priority to the journal; they take some seconds to arrive in Loki."""
    written = {priority: random.token_hex(8) for priority in LEVELS}
    lines = (f"echo 'quotes \" and \\ {mark}' | systemd-cat -t verify -p {name}" for name, mark in written.items())
    sh("; ".join(lines))
    return written


@pytest.mark.parametrize(("priority", "level"), LEVELS.items())
def test_a_message_in_the_journal_is_found_with_its_level(loki, marks, priority, level):
    """A message in the journal is found in Loki with its level."""
    mark = marks[priority]
    (line,) = found(loki, f'{{level="{level}"}} |= "{mark}"')
    assert line.text == f'quotes " and \\ {mark}'
    assert line.labels["identifier"] == "verify"


def test_a_request_is_found_in_the_log_of_the_ingress(edge, service, loki):
    """The log of the ingress contains each request with its id."""
    answer = edge.get(service.file.health.live)
    logql = f'{{service="edge"}} | request_id="{answer.headers["x-request-id"]}"'
    assert eventually(lambda: loki.find(logql), within_s=20)
    assert all(json.loads(line.text) for line in loki.find(logql))


def test_a_client_does_not_choose_what_its_request_is_found_by(edge, loki):
    """A client cannot choose the request id under which its request is logged."""
    forged = f"forged-{random.token_hex(6)}"
    known = edge.get(f"/metrics?{forged}", "--header", f"X-Request-ID: {forged}").headers["x-request-id"]
    assert found(loki, f'{{service="edge"}} | request_id="{known}"'), "the request itself did not arrive"
    assert loki.find(f'{{service=~".+"}} | request_id="{forged}"') == []


def test_labels_have_few_values(loki):
    """The log labels have a small number of values."""
    code, answer = loki.request("/loki/api/v1/label/level/values")
    assert code == 200
    assert set(json.loads(answer)["data"]) <= {"error", "warn", "info", "debug"}
    code, answer = loki.request("/loki/api/v1/label/service/values")
    services = json.loads(answer)["data"]
    assert len(services) < 100, services
    # The only numbered units with fixed names: one for each repository.
    several = set(services) - {"minipc-drill@1", "minipc-drill@2"}
    assert not [name for name in several if re.search(r"[0-9a-f]{8}-|^session-|^run-|@\d|\.scope$", name)], services


def test_nothing_waits_and_nothing_was_dropped(stats):
    """No log line is waiting for delivery, and none was dropped."""
    assert eventually(lambda: stats()["waiting"] == 0, within_s=60), stats()
    assert stats()["dropped"] == 0


def test_what_is_logged_while_loki_is_down_arrives_later(disturb, loki, stats):
    """Logs written while Loki is stopped are delivered later."""
    mark = random.token_hex(8)
    disturb(f"systemctl stop {LOKI}")
    try:
        disturb(f'for i in $(seq 300); do echo "{mark} $i"; done | systemd-cat -t verify')
        assert eventually(lambda: stats()["waiting"] >= 300, within_s=20), stats()
        # What waits survives its own restart as well.
        disturb(f"systemctl restart {UNIT}")
    finally:
        disturb(f"systemctl start {LOKI}")
    lines = found(loki, f'{{service=~".+"}} |= "{mark}"', count=300, within_s=60)
    numbers = sorted(int(line.text.split()[1]) for line in lines)
    assert numbers == list(range(1, 301))
    assert stats()["dropped"] == 0


def test_it_sees_logs_and_what_it_needs_and_nobodys_secrets(sh):
    """The log collector cannot see files that contain secrets.

    It may read every file that it can see. A link in place of a log file would otherwise send its target to Loki.
    """
    secret = "/etc/shadow /etc/minipc /etc/ssh /etc/rancher /etc/prometheus /etc/caddy /etc/ssl/private /root/.ssh "
    secret += "/var/lib/minipc /var/lib/postgresql /var/lib/rancher /var/lib/caddy /var/lib/kubelet /run/k3s"
    look = f"for each in {secret}; do [ ! -e $each ] || echo $each; done"
    assert len(sh(look).split()) > 5, "they aren't there at all"
    assert sh(f"nsenter --mount --target $(systemctl show -P MainPID {UNIT}) sh -c '{look}'") == ""


def test_its_buffer_is_bounded_and_private(sh, settings):
    """The log collector's buffer is private and limited in size."""
    assert sh("stat -c '%U %a' /var/lib/syslog-ng") == "syslog-ng 700"
    text = sh("syslog-ng-ctl stats prometheus")
    capacity = re.search(r"^syslogng_disk_queue_capacity_bytes\{.*\} (\d+)", text, re.M)
    assert capacity
    assert int(capacity[1]) <= settings.syslog_ng.buffer_mb * 1024**2


def test_it_opens_no_port(listeners):
    """The log collector opens no port."""
    assert [port for _, port, program in listeners if program == "syslog-ng"] == []


def test_the_unit_is_bounded_and_confined(units, exposure):
    """The log collector has a memory limit and runs with few privileges."""
    properties = units(UNIT)
    assert (properties["UnitFileState"], properties["Restart"], properties["User"]) == (
        "enabled",
        "always",
        "syslog-ng",
    )
    assert int(properties["MemoryMax"]) == 128 * 1024**2
    assert exposure(UNIT) < 2.5
