"""Test every alert: inject a fault, receive its alert in a test double of Slack, let triage name the cause, repair the
fault, and wait until the alert resolves.

Rules run faster than in production (`prometheus_pace`), so that the table takes minutes. It is in `reports/alerts/`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from minipc.checks import load
from minipc.checks.schema import seconds
from minipc.checks.verdict import Verdict, judge
from minipc.core.environment import LAB
from minipc.core.paths import ROOT
from minipc.remote.inventory import Target, the_target
from minipc.secrets import open_store
from playbooks.status import ask
from rehearsal import lab
from tests.lab.conftest import converge, on

PACE = 10
PORT = 9399
MESSAGES = "/run/minipc-test/slack.jsonl"
# Time that a fault may take beyond the budget of the alert, because the controller is busy.
PATIENCE_S = 60
SQL = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d postgres"
REPOSITORY = "/var/lib/pgbackrest"


@dataclass(frozen=True)
class Fault:
    """A fault, and what must be noticed.

    In the scripts and in `each`, SERVICE is the first declared service, FRONT its process behind the ingress and WORKER
    one of its other processes.

    Attributes:
        name: what happens.
        inject: shell script for the machine.
        repair: shell script that reverts it.
        alert: name of the alert that must fire.
        cause: check that triage must name as the cause; empty if triage does not know it.
        each: item that the message must name; empty if there is only one.
        also: other alerts that must fire because of it.
    """

    name: str
    inject: str
    repair: str
    alert: str
    cause: str
    each: str = ""
    also: tuple[str, ...] = ()


def of_process(name: str, command: str) -> str:
    """Return a script that does something to the unit of a process; services run under podman in this test."""
    return f"systemctl {command} minipc-SERVICE-{name}.service"


SHORT = [
    Fault(
        "the service stops",
        of_process("FRONT", "stop"),
        of_process("FRONT", "start"),
        "RuntimeDown",
        "runtime",
        "SERVICE",
    ),
    Fault(
        "a worker stops",
        of_process("WORKER", "stop"),
        of_process("WORKER", "start"),
        "ProcessDown",
        "processes",
        "SERVICE/WORKER",
    ),
    Fault("Redis stops", "systemctl stop redis-server", "systemctl start redis-server", "CacheDown", "cache"),
    Fault(
        "the disk fills up",
        "fallocate -l $(( $(df --output=avail -B1 / | tail -1) - $(df --output=size -B1 / | tail -1) / 20 )) /var/fill",
        "rm -f /var/fill",
        "DiskFull",
        "disk",
        "/",
    ),
    Fault(
        "archiving breaks",
        f"chmod 000 {REPOSITORY}/archive; {SQL} -c 'SELECT pg_switch_wal()' >/dev/null",
        f"chmod 750 {REPOSITORY}/archive; {SQL} -c 'SELECT pg_switch_wal()' >/dev/null",
        "ArchivingFails",
        "archiving",
    ),
]

LONG = [
    Fault("the ingress stops", "systemctl stop caddy", "systemctl start caddy", "ServiceDown", "answers", "SERVICE"),
    Fault(
        "PostgreSQL stops",
        "systemctl stop postgresql@17-main",
        "systemctl start postgresql@17-main",
        "DatabaseDown",
        "database",
    ),
    Fault(
        "a worker ends again and again",
        "mkdir -p /run/systemd/system/minipc-SERVICE-WORKER.service.d; "
        "printf '[Service]\\nExecStartPost=/bin/false\\n' "
        "> /run/systemd/system/minipc-SERVICE-WORKER.service.d/minipc-test.conf; "
        f"systemctl daemon-reload; {of_process('WORKER', '--no-block restart')}",
        "rm -r /run/systemd/system/minipc-SERVICE-WORKER.service.d; "
        f"systemctl daemon-reload; {of_process('WORKER', 'restart')}",
        "ProcessDown",
        "processes",
        "SERVICE/WORKER",
    ),
]


@dataclass
class Row:
    """A row of the table. Times are in seconds after the fault, and after its repair."""

    fault: str
    alert: str
    pace: int
    fired_s: float | None = None
    resolved_s: float | None = None
    budget_s: int | None = None
    triage: str = ""
    sentence: str = ""
    verdict: str = "fail"


@dataclass
class Lookout:
    """A machine whose alerts are observed."""

    machine: lab.Machine
    rows: list[Row] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return the_target(LAB, self.machine.name)

    def filled(self, fault: Fault) -> Fault:
        """Return the fault with the names of the first service that has a worker."""
        service = next(
            each for each in self.target.settings.services.declared if len(each.processes) > 1 and each.front
        )
        assert service.front
        names = {"SERVICE": service.name, "FRONT": service.front[0]}
        names["WORKER"] = next(name for name in service.processes if name != service.front[0])
        texts = {key: getattr(fault, key) for key in ("inject", "repair", "each")}
        for word, name in names.items():
            texts = {key: text.replace(word, name) for key, text in texts.items()}
        return replace(fault, **texts)

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages for Slack. Each is checked to be one that Slack accepts."""
        lines = on(self.machine, f"cat {MESSAGES} 2>/dev/null || true").splitlines()
        return [accepted_by_slack(json.loads(line)) for line in lines]

    def sent_at(self, word: str, alert: str, each: str, since: float) -> float | None:
        """Return when Slack got the message that an alert fires ("P…") or is resolved ("Resolved"); None if not."""
        for message in self.messages():
            attachment = message["attachments"][0]
            name = f"{alert} ({each})" if each else alert
            resolved = f"✓ {name}:" in attachment["text"]
            firing = f"*{alert}*" + (f" ({each})" if each else "") + ":" in attachment["text"]
            if message["at"] >= since and (resolved if word == "Resolved" else firing):
                return float(message["at"])
        return None

    def now(self) -> float:
        return float(on(self.machine, "date +%s.%N"))

    def wait_for(self, word: str, fault: Fault, since: float, limit_s: float) -> float:
        give_up = time.monotonic() + limit_s
        while (at := self.sent_at(word, fault.alert, fault.each, since)) is None:
            assert time.monotonic() < give_up, f"{fault.name}: no message `{word} {fault.alert}`: {self.state(fault)}"
            time.sleep(0.5)
        return at - since

    def state(self, fault: Fault) -> str:
        query = f'ALERTS{{alertname="{fault.alert}"}}'
        prometheus = on(self.machine, f"promtool query instant http://127.0.0.1:9090 '{query}'", check=False)
        last = [message["attachments"][0]["title"] for message in self.messages()[-4:]]
        return f"Prometheus: {prometheus.strip() or 'nothing'}; last messages: {last}"

    def triage(self) -> Verdict:
        checks = load(self.target.settings.services.declared)
        return judge(checks, ask(self.target, checks, prefer="machine").answers)

    def wait_until_healthy(self, limit_s: float = 120) -> None:
        """Wait until triage finds no cause, so that it does not report the previous fault."""
        give_up = time.monotonic() + limit_s
        while (verdict := self.triage()).causes:
            assert time.monotonic() < give_up, f"not healthy before the fault: {verdict.sentence}"
            time.sleep(2)

    def prove(self, fault: Fault, pace: int = PACE) -> Row:
        """Inject one fault, wait for its alert, ask triage, repair it, and wait until the alert resolves."""
        fault = self.filled(fault)
        checks = load(self.target.settings.services.declared).checks
        within = next((check.within for check in checks if check.alert == fault.alert), None)
        budget = seconds(within) if within else 300
        row = Row(fault.name, fault.alert, pace, budget_s=round(budget / pace))
        self.rows.append(row)
        self.wait_until_healthy()
        since = self.now()
        on(self.machine, fault.inject)
        try:
            row.fired_s = round(self.wait_for("P", fault, since, budget / pace + PATIENCE_S), 1)
            for alert in fault.also:
                other = replace(fault, alert=alert, each="")
                after = round(self.wait_for("P", other, since, budget / pace + PATIENCE_S), 1)
                self.rows.append(Row(fault.name, alert, pace, after, triage="", verdict="pass"))
            verdict = self.triage()
            row.sentence = verdict.sentence
            row.triage = verdict.causes[0].check.id if verdict.causes else ""
        finally:
            repaired_at = self.now()
            on(self.machine, fault.repair)
        row.resolved_s = round(self.wait_for("Resolved", fault, repaired_at, 240 / pace + 120), 1)
        row.verdict = "pass" if row.triage == fault.cause else "fail"
        return row


def accepted_by_slack(line: dict[str, Any]) -> dict[str, Any]:
    """Return a message, asserting that a Slack webhook accepts it: https://api.slack.com/reference/messaging."""
    assert line["type"] == "application/json"
    message = json.loads(line["body"])
    assert 1 <= len(message["attachments"]) <= 20
    for attachment in message["attachments"]:
        for key in ("title", "text", "fallback", "color"):
            assert isinstance(attachment[key], str), key
            assert attachment[key], key
        assert len(attachment["text"]) < 40_000
        assert "<no value>" not in line["body"]
    return {"at": line["at"], **message}


@pytest.fixture(scope="module")
def watched(request: pytest.FixtureRequest) -> lab.Machine:
    """Return the machine of the rehearsal, or an existing one, to run these tests alone: MINIPC_TEST_MACHINE=NAME."""
    name = os.environ.get("MINIPC_TEST_MACHINE")
    found = lab.find(name) if name else request.getfixturevalue("site")
    assert isinstance(found, lab.Machine), f"no lab machine {name}"
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return variables for a copy of the lab's secrets with a Slack address. The lab's store stays unchanged."""
    store = open_store("lab")
    copy = tmp_path_factory.mktemp("secrets")
    shutil.copytree(Path(store.location.split()[-1]).parent, copy, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIPC_LAB_SECRETS_DIR", str(copy))
        url = f"http://127.0.0.1:{PORT}/services/T0/B0/{secrets.token_hex(12)}"
        open_store("lab").set_many({"alertmanager.slack_url": url})
    return {"MINIPC_LAB_SECRETS_DIR": str(copy)}


@pytest.fixture(scope="module")
def lookout(watched: lab.Machine, environment: dict[str, str]) -> Iterator[Lookout]:
    """Send alerts to the test double of Slack, with fast rules. Restore the settings afterwards."""
    program = (Path(__file__).parent / "slack_receiver.py").read_text()
    on(
        watched,
        "mkdir -p /run/minipc-test && cat > /run/minipc-test/slack.py <<'END'\n"
        f"{program}\nEND\nrm -f {MESSAGES}\n"
        f"systemd-run --quiet --unit minipc-test-slack python3 /run/minipc-test/slack.py {PORT} {MESSAGES}",
    )
    lookout = Lookout(watched)
    try:
        at_pace(watched, PACE, environment)
        yield lookout
    finally:
        on(watched, "systemctl stop minipc-test-slack; rm -rf /run/minipc-test", check=False)
        done = converge(watched, "alertmanager", "prometheus")
        keep(lookout.rows)
        assert done.code == 0, done.output


def at_pace(machine: lab.Machine, pace: int, env: dict[str, str]) -> None:
    channels = json.dumps([{"name": "slack", "kind": "slack"}])
    options = ["--data", f"prometheus_pace={pace}", "--data", f"alertmanager_channels={channels}"]
    done = converge(machine, "alertmanager", "prometheus", options=options, env=env)
    assert done.code == 0, done.output


def keep(rows: list[Row]) -> None:
    """Write the table as JSON and as Markdown."""
    if not rows:
        return
    directory = ROOT / "reports" / "alerts"
    directory.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    (directory / f"{stamp}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    lines = [
        "| fault | alert | pace | fires after | budget | resolves after | triage | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.fault} | {row.alert} | {row.pace} | {row.fired_s} s | {row.budget_s} s | {row.resolved_s} s "
        f"| {row.triage} | {row.verdict} |"
        for row in rows
    ]
    text = "\n".join(lines) + "\n"
    (directory / f"{stamp}.md").write_text(text)
    print(f"\n{text}")


def proven(lookout: Lookout, fault: Fault) -> None:
    row = lookout.prove(fault)
    assert row.triage == fault.cause, row.sentence


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
def test_a_fault_is_reported_located_and_resolved(lookout: Lookout, fault: Fault) -> None:
    proven(lookout, fault)


@pytest.mark.long
@pytest.mark.timeout(420)
@pytest.mark.parametrize("fault", LONG, ids=lambda fault: fault.name)
def test_the_whole_table(lookout: Lookout, fault: Fault) -> None:
    proven(lookout, fault)
