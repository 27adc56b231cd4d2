"""Every alert is proven: a fault is put in, its alert reaches a stand-in for Slack, triage names the right place, the
fault is mended, and the alert resolves by itself.

In fast motion (`prometheus_pace`), so that the table takes minutes. It is kept in `reports/alerts/`.
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

from minipc import lab
from minipc.checks import load
from minipc.checks.schema import seconds
from minipc.checks.verdict import Verdict, judge
from minipc.inventory import the_target
from minipc.paths import ROOT
from minipc.secrets import open_store
from playbooks.status import ask
from tests.lab.conftest import converge, on

PACE = 10
PORT = 9399
MESSAGES = "/run/minipc-test/slack.jsonl"
# What a fault may take beyond the alert's own budget: a busy controller.
PATIENCE_S = 60
SQL = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d workload"
REPOSITORY = "/var/lib/pgbackrest"


@dataclass(frozen=True)
class Fault:
    """What is broken, how, and what must be noticed.

    Attributes:
        name: what happens.
        inject: shell on the machine.
        mend: the same, back.
        alert: name of the alert that must fire.
        cause: the question that triage must blame; empty: triage has nothing to say about it.
        each: what must be named by the message; empty: there is only one.
        also: other alerts that must be told because of it.
    """

    name: str
    inject: str
    mend: str
    alert: str
    cause: str
    each: str = ""
    also: tuple[str, ...] = ()


def holding(statement: str) -> tuple[str, str]:
    """A transaction that holds what others need, and its end. The client's end alone would not end its sleep."""
    start = (
        "systemd-run --quiet --unit minipc-test-lock -p User=postgres -E PGAPPNAME=minipc-test-lock "
        f'psql -Xq -d workload -c "BEGIN; {statement}; SELECT pg_sleep(900)"'
    )
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'minipc-test-lock'"
    return start, f'{SQL} -c "{end}"; sleep 1; systemctl reset-failed minipc-test-lock 2>/dev/null || true'


LOCKED, UNLOCKED = holding("LOCK TABLE worker_heartbeats IN ACCESS EXCLUSIVE MODE")
AWAY = f"{SQL} -c 'ALTER TABLE weather_observations RENAME TO minipc_test_away'"
BACK = f"{SQL} -c 'ALTER TABLE minipc_test_away RENAME TO weather_observations'"
PILE = """
INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth) VALUES ('t', 'https://t.test/t', 'p', 'a');
INSERT INTO outbox (subscription_id, dedup_key, payload, next_attempt_at)
  SELECT (SELECT max(id) FROM push_subscriptions), 't' || n, '{}', now() + interval '1 day'
  FROM generate_series(1, 30) n;
"""
BURST = (
    "sh -c 'while sleep 0.2; do curl -sk -o /dev/null --resolve service.minipc.test:443:127.0.0.1 "
    "https://service.minipc.test/api/events/1; done'"
)
OLD_DATA = """
CREATE FUNCTION minipc_test_old() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN NEW.observed_at := NEW.observed_at - interval ''2 hours''; RETURN NEW; END';
CREATE TRIGGER minipc_test_old BEFORE INSERT ON parking_observations
  FOR EACH ROW EXECUTE FUNCTION minipc_test_old();
UPDATE parking_observations SET observed_at = observed_at - interval '2 hours';
"""

SHORT = [
    Fault(
        "the API stops",
        "systemctl stop workload-api",
        "systemctl start workload-api",
        "RuntimeDown",
        "runtime",
        also=("DeployUnhealthy",),
    ),
    Fault(
        "a worker is killed",
        "systemctl stop workload-worker@ingest",
        "systemctl start workload-worker@ingest",
        "WorkerDown",
        "workers",
        "ingest",
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
    Fault("the door stops", "systemctl stop caddy", "systemctl start caddy", "ApiDown", "user-api"),
    Fault(
        "PostgreSQL stops",
        "systemctl stop postgresql@17-main",
        "systemctl start postgresql@17-main",
        "DatabaseDown",
        "database",
    ),
    Fault(
        "the database answers late",
        LOCKED,
        UNLOCKED,
        "DatabaseTooSlow",
        "database-in-time",
    ),
    Fault(
        "one screen fails",
        AWAY,
        BACK,
        "ScreenFailing",
        "screens",
        "/api/outing",
    ),
    Fault(
        "a burst of errors",
        f"{AWAY}; systemd-run --quiet --unit minipc-test-burst {BURST}".replace("weather_observations", "app_events"),
        f"systemctl stop minipc-test-burst; {BACK}".replace("weather_observations", "app_events"),
        "ManyErrors",
        "errors",
        "api",
        also=("DoorErrors", "ErrorBudgetBurnsFast"),
    ),
    Fault(
        "a worker hangs",
        "systemctl kill --signal STOP workload-worker@forecast",
        "systemctl kill --signal CONT workload-worker@forecast",
        "WorkerDown",
        "workers",
        "forecast",
    ),
    Fault(
        "a source delivers old data",
        f"{SQL} <<'END'\n{OLD_DATA}\nEND",
        # The next batch brings new data at once.
        f"{SQL} -c 'DROP TRIGGER minipc_test_old ON parking_observations; DROP FUNCTION minipc_test_old' && "
        "systemctl restart workload-worker@ingest",
        "StaleButServing",
        "freshness",
        "/api/parking",
    ),
    Fault(
        "notifications pile up",
        f"{SQL} <<'END'\n{PILE}\nEND",
        f"{SQL} -c \"DELETE FROM push_subscriptions WHERE user_id = 't'\"",
        "OutboxGrowing",
        "outbox",
    ),
]


@dataclass
class Row:
    """A line of the table. Times in seconds after the fault and after its mending."""

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
    """A machine whose alerts are watched."""

    machine: lab.Machine
    rows: list[Row] = field(default_factory=list)

    def messages(self) -> list[dict[str, Any]]:
        """What Slack would have got, each checked to be what Slack takes."""
        lines = on(self.machine, f"cat {MESSAGES} 2>/dev/null || true").splitlines()
        return [as_slack_takes_it(json.loads(line)) for line in lines]

    def told(self, word: str, alert: str, each: str, since: float) -> float | None:
        """When Slack was told that the alert fires ("P…") or is over ("Resolved"); None: not yet."""
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
        while (at := self.told(word, fault.alert, fault.each, since)) is None:
            assert time.monotonic() < give_up, f"{fault.name}: no message `{word} {fault.alert}`: {self.state(fault)}"
            time.sleep(0.5)
        return at - since

    def state(self, fault: Fault) -> str:
        query = f'ALERTS{{alertname="{fault.alert}"}}'
        prometheus = on(self.machine, f"promtool query instant http://127.0.0.1:9090 '{query}'", check=False)
        last = [message["attachments"][0]["title"] for message in self.messages()[-4:]]
        return f"Prometheus: {prometheus.strip() or 'nothing'}; last messages: {last}"

    def triage(self) -> Verdict:
        checks = load()
        target = the_target("lab", self.machine.name)
        return judge(checks, ask(target, "lab", checks, prefer="machine").answers)

    def wait_until_well(self, limit_s: float = 120) -> None:
        """Nothing of the fault before may be left, or triage would rightly speak of that."""
        give_up = time.monotonic() + limit_s
        while (verdict := self.triage()).causes:
            assert time.monotonic() < give_up, f"not well before the fault: {verdict.sentence}"
            time.sleep(2)

    def prove(self, fault: Fault, pace: int = PACE) -> Row:
        """The whole story of one fault."""
        within = next((check.within for check in load().checks if check.alert == fault.alert), None)
        budget = seconds(within) if within else 300
        row = Row(fault.name, fault.alert, pace, budget_s=round(budget / pace))
        self.rows.append(row)
        self.wait_until_well()
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
            mended = self.now()
            on(self.machine, fault.mend)
        row.resolved_s = round(self.wait_for("Resolved", fault, mended, 240 / pace + 120), 1)
        row.verdict = "pass" if row.triage == fault.cause else "fail"
        return row


def as_slack_takes_it(line: dict[str, Any]) -> dict[str, Any]:
    """The message, when it is what an incoming webhook of Slack accepts: https://api.slack.com/reference/messaging."""
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
    """The rehearsal's machine, or, to try these tests alone, one that is there: MINIPC_TEST_MACHINE=NAME."""
    name = os.environ.get("MINIPC_TEST_MACHINE")
    found = lab.find(name) if name else request.getfixturevalue("site")
    assert isinstance(found, lab.Machine), f"no lab machine {name}"
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The lab's secrets and a Slack address; the lab's own store never learns of it."""
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
    """Alerts go to the stand-in for Slack, in fast motion; afterwards all is as it was."""
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
    options = ["--data", f"prometheus_pace={pace}", "--data", "alertmanager_slack=true"]
    done = converge(machine, "alertmanager", "prometheus", options=options, env=env)
    assert done.code == 0, done.output


def keep(rows: list[Row]) -> None:
    """The table, as JSON and for people."""
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
def test_a_fault_is_told_located_and_told_to_be_over(lookout: Lookout, fault: Fault) -> None:
    proven(lookout, fault)


@pytest.mark.long
@pytest.mark.timeout(420)
@pytest.mark.parametrize("fault", LONG, ids=lambda fault: fault.name)
def test_the_whole_table(lookout: Lookout, fault: Fault) -> None:
    proven(lookout, fault)
