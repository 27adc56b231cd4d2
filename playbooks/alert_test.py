"""Send one message through each channel of the alerts (`minipc alert test`), and show which arrived.

Both machines send: the mini PC, and the off-site host, which reports what the mini PC cannot. A message arrived if the
server of the channel accepted it, as Alertmanager's own counters say. Why one did not is in Alertmanager's log.
"""

from __future__ import annotations

import json
import re
import secrets
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.text import Text

from minipc.core.environment import Environment
from minipc.core.errors import EXIT_COULD_NOT_VERIFY, EXIT_FAIL, EXIT_PASS, CouldNotVerifyError
from minipc.core.formatting import one_line
from minipc.core.polling import wait_until
from minipc.core.ports import MONITORING
from minipc.evidence.display import console_for
from minipc.remote.inventory import Target, offsite_target, the_target
from minipc.remote.queries import on

# Alertmanager tries for 10 s, the least that it allows.
PATIENCE_S = 25
TEST = "ChannelTest"
# The password is never in a command line.
ASK = f"""
set -eu; umask 077; login=$(mktemp); trap 'rm -f $login' EXIT
printf 'user = "operator:%s"\\n' "$(cat /etc/prometheus/minipc/alertmanager.password)" > $login
ask() {{
    path=$1; shift
    curl -sS --fail --noproxy '*' --max-time 5 --config $login "$@" http://127.0.0.1:{MONITORING["alertmanager"]}/$path
}}
"""
_COUNTER = re.compile(
    r"^alertmanager_(notifications_failed|notification_requests|notification_requests_failed)_total"
    r'\{.*receiver_name="([a-z0-9_]+)".*\} (\S+)$',
    re.MULTILINE,
)

# Telegram's address contains the token of the bot.
_TOKEN = re.compile(r"(?<=/bot)[^/\s]+")

Counters = dict[tuple[str, str], float]


def send_tests(environment: Environment, alias: str | None = None) -> int:
    """Send the messages from both machines, print a line for each channel, and return the exit code."""
    mini, console = the_target(environment, alias), console_for()
    offsite = offsite_target(environment, mini)
    codes = {_send_from(machine, console) for machine in (mini, offsite) if machine}
    return next(code for code in (EXIT_FAIL, EXIT_COULD_NOT_VERIFY, EXIT_PASS) if code in codes)


def _send_from(machine: Target, console: Console) -> int:
    names = [channel.name for channel in machine.settings.alertmanager.channels]
    if not names:
        console.print(Text(f"? {machine.alias}: NOT EXERCISED: alertmanager_channels is empty", "bold yellow"))
        return EXIT_COULD_NOT_VERIFY
    try:
        failures = send(machine, names)
    except CouldNotVerifyError as error:
        console.print(Text(f"? {machine.alias}: Alertmanager cannot be asked: {one_line(str(error))}", "bold yellow"))
        return EXIT_COULD_NOT_VERIFY
    for name in names:
        if name in failures:
            console.print(Text(f"✗ {machine.alias}: {name}: {one_line(failures[name])}", "bold red"), soft_wrap=True)
        else:
            console.print(Text(f"✓ {machine.alias}: {name}: arrived", "green"))
    return EXIT_FAIL if failures else EXIT_PASS


def send(machine: Target, names: list[str]) -> dict[str, str]:
    """Send a message through each of these channels; return why it did not arrive, for each where it did not.

    Raises:
        CouldNotVerifyError: the machine or its Alertmanager can't be asked.
    """
    run, ends = secrets.token_hex(4), (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    labels = {"alertname": TEST, "priority": "P3", "layer": "monitoring", "run": run}
    texts = {"meaning": "This is a test of the channel.", "next": "nothing"}
    since = on(machine, "date +%s")
    before = counters(on(machine, f"{ASK} ask metrics"))
    alerts = [{"labels": labels | {"channel": name}, "annotations": texts, "endsAt": ends} for name in names]
    _post(machine, "alerts", alerts)

    def ask() -> dict[str, bool]:
        return outcomes(before, counters(on(machine, f"{ASK} ask metrics")))

    found = wait_until(ask, PATIENCE_S, every_s=1, until=lambda outcome: outcome.keys() >= set(names))
    # Alertmanager sends no message that a silenced alert is over.
    matchers = [{"name": "run", "value": run, "isRegex": False, "isEqual": True}]
    silence = {"matchers": matchers, "startsAt": datetime.now(UTC).isoformat(), "endsAt": ends}
    _post(machine, "silences", silence | {"createdBy": "minipc", "comment": "minipc alert test"})
    log = on(machine, f"journalctl -u prometheus-alertmanager -o cat --since=@{since}")
    return {name: reason(log, name) for name in names if not found.get(name)}


def _post(machine: Target, path: str, body: object) -> None:
    on(machine, f"{ASK} ask api/v2/{path} -o /dev/null --json @-", stdin=json.dumps(body))


def counters(metrics: str) -> Counters:
    """Return Alertmanager's counters of its channels: kind and channel -> sum over the reasons."""
    found: Counters = {}
    for kind, channel, value in _COUNTER.findall(metrics):
        found[kind, channel] = found.get((kind, channel), 0) + float(value)
    return found


def outcomes(before: Counters, now: Counters) -> dict[str, bool]:
    """Return for each channel whether a message arrived; those that are still trying are left out."""
    grown = {key: value - before.get(key, 0) for key, value in now.items()}
    found = {}
    for kind, channel in grown:
        if kind == "notifications_failed" and grown[kind, channel]:
            found[channel] = False
        elif kind == "notification_requests" and grown[kind, channel] > grown.get((f"{kind}_failed", channel), 0):
            found.setdefault(channel, True)
    return found


def reason(log: str, channel: str) -> str:
    """Return why Alertmanager's log says that a message did not get through a channel. It contains no secrets."""
    errors = [line for line in log.splitlines() if "Notify for alerts failed" in line and f'"{channel}/' in line]
    if not errors:
        return f"no success within {PATIENCE_S} s; next: journalctl -u prometheus-alertmanager"
    said = re.search(r'err="(.*)"$', errors[-1])
    return _TOKEN.sub("…", said[1].replace('\\"', '"') if said else errors[-1])
