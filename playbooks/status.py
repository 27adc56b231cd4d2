"""Answer the operator's questions about a machine (`minipc status`) and find the cause of a fault (`minipc triage`).

Status asks Prometheus, or the machine itself if Prometheus does not answer; for the off-site host it asks the external
monitor. Triage always asks the machine itself, because a measurement may be a minute old. It asks Prometheus only for
values that the machine cannot provide immediately.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minipc.checks import Checks, load
from minipc.checks.asking import (
    PATIENCE_S,
    Answer,
    read_machine,
    read_outside,
    read_prometheus,
    script_for_machine,
    script_for_prometheus,
)
from minipc.checks.resources import SCRIPT as RESOURCES
from minipc.checks.resources import read as read_resources
from minipc.checks.subjects import subjects
from minipc.checks.verdict import LAYERS, Verdict, judge, shown, what_next, worst
from minipc.config.service import Service
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_COULD_NOT_VERIFY, EXIT_FAIL, EXIT_PASS, CouldNotVerifyError
from minipc.core.formatting import one_line
from minipc.evidence.display import console_for
from minipc.remote.inventory import Target, offsite_target, the_target
from minipc.remote.queries import on
from playbooks.alert_test import ASK, TEST

# All questions are asked in parallel; each has a shorter time limit.
LIMIT_S = 40
# What must run on the off-site host, and the alert that always fires there while its monitoring works.
WATCHING = "prometheus prometheus-alertmanager minipc-watcher"
ALWAYS = "Watchdog"
_SHOWN_BYTES = 2**20


@dataclass(frozen=True)
class Asked:
    """All answers by question.

    Attributes:
        prometheus: True if Prometheus answered.
        reachable: True if the machine could be reached.
    """

    answers: Mapping[str, Answer]
    prometheus: bool
    reachable: bool


def status(environment: Environment, alias: str | None = None, *, direct: bool = False) -> int:
    """Print one line for each question and return the exit code.

    Args:
        direct: do not ask Prometheus.
    """
    target, console = the_target(environment, alias), console_for()
    checks = load(target.settings.services.declared)
    asked = ask(target, checks, prefer="machine" if direct else "prometheus")
    verdict = judge(checks, asked.answers)
    table, off_site_state = _table(checks, asked, verdict), off_site(environment, target)
    if off_site_state:
        table.add_row(*_row_of_off_site(off_site_state))
    console.print(table)
    if not asked.reachable:
        console.print(Text(f"{target.alias} cannot be reached; only the checks from outside were possible", "bold red"))
    elif not asked.prometheus and not direct:
        console.print(Text("Prometheus does not answer; the values come directly from the machine", "bold yellow"))
    console.print(_sentence(verdict, asked), soft_wrap=True)
    return _exit_code(verdict, off_site_state)


def resources(environment: Environment, alias: str | None = None) -> int:
    """Print the memory of each unit, pod and container, and the sums. Return the exit code."""
    target, console = the_target(environment, alias), console_for()
    services = target.settings.services.declared
    used = read_resources(on(target, "sh -s", stdin=RESOURCES, timeout_s=LIMIT_S), services)
    table = Table.grid(padding=(0, 2, 0, 0))
    for each in used:
        if each.memory >= _SHOWN_BYTES:
            table.add_row(_megabytes(each.memory), Text(each.name), Text(each.service))
    small = [each.memory for each in used if each.memory < _SHOWN_BYTES]
    table.add_row(_megabytes(sum(small)), Text(f"{len(small)} others, each below 1 MB", "dim"), Text(""))
    for name in ("", *(service.name for service in services)):
        memory = sum(each.memory for each in used if each.service == name)
        table.add_row(_megabytes(memory), Text(f"sum of {name or 'the platform'}", "bold"), Text(name))
    table.add_row(_megabytes(sum(each.memory for each in used)), Text("sum", "bold"), Text(""))
    console.print(table)
    console.print(Text("Memory that processes share is divided among them; file caches are not counted.", "dim"))
    return EXIT_PASS


def _megabytes(memory: int) -> Text:
    return Text(f"{memory / 2**20:.0f} MB", justify="right")


def triage(environment: Environment, alias: str | None = None) -> int:
    """Check all layers from the ingress to the data, print the result and a conclusion, and return the exit code."""
    target, console = the_target(environment, alias), console_for()
    checks = load(target.settings.services.declared)
    asked = ask(target, checks, prefer="machine")
    verdict = judge(checks, asked.answers)
    if not asked.reachable:
        console.print(f"  ✗ {target.alias} cannot be reached over SSH: check its power, its network, then its firewall")
    for layer, title in LAYERS:
        _walk(console, checks, asked, verdict, layer, title)
    for cause in verdict.causes[1:]:
        console.print(Text(f"Also: {cause.check.meaning} Next: {what_next(cause.check, cause.bad)}", "yellow"))
    console.print(_sentence(verdict, asked), soft_wrap=True)
    return _exit_code(verdict)


def ask(target: Target, checks: Checks, *, prefer: str) -> Asked:
    """Ask all questions.

    Args:
        prefer: "prometheus" or "machine": asked first; the other one is asked for missing answers.
    """
    measured: dict[str, Answer] = {}
    seen: dict[str, Answer] = {}
    reachable = True
    try:
        if prefer == "prometheus":
            measured = _measured(target, checks)
            if not measured:
                seen = _seen(target, checks)
        else:
            seen = _seen(target, checks)
            measured = _measured(target, checks)
    except CouldNotVerifyError:
        reachable = False
    found = seen | measured if prefer == "prometheus" else measured | seen
    for check in checks.checks:
        if check.asked_from == "outside":
            found[check.id] = read_outside(check, _from_outside(target))
        elif check.id not in found:
            found[check.id] = Answer(check, (), "machine", "neither the machine nor Prometheus could be asked")
    # In the order of the questions.
    answers = {check.id: found[check.id] for check in checks.checks}
    return Asked(answers, bool(measured), reachable)


@dataclass(frozen=True)
class OffSite:
    """What the external monitor on the off-site host reports; `unknown` is set if it cannot be asked."""

    wrong: str = ""
    unknown: str = ""


def off_site(environment: Environment, target: Target) -> OffSite | None:
    """Ask the external monitor on the off-site host. Return None if the inventory has no off-site host."""
    other = offsite_target(environment, target)
    if other is None:
        return None
    try:
        running = f"for unit in {WATCHING}; do systemctl is-active --quiet $unit; done"
        script = f"{ASK} {running}; ask 'api/v2/alerts?silenced=false&inhibited=false'"
        alerts = json.loads(on(other, script, timeout_s=2 * PATIENCE_S))
        names = {_alert_there(alert) for alert in alerts if alert["labels"]["alertname"] != TEST}
    except (CouldNotVerifyError, ValueError, KeyError, TypeError) as error:
        return OffSite(unknown=f"the external monitor cannot be asked: {error}")
    if ALWAYS not in names:
        return OffSite(unknown=f"the external monitor raises no alerts: {ALWAYS} is missing")
    return OffSite("; ".join(sorted(names - {ALWAYS})))


def _alert_there(alert: Mapping[str, Any]) -> str:
    each = alert["annotations"].get("each")
    return f"{alert['labels']['alertname']} ({each})" if each else str(alert["labels"]["alertname"])


def _row_of_off_site(off_site_state: OffSite) -> tuple[Text, Text, Text, Text]:
    question = "Does the off-site host see nothing wrong?"
    if off_site_state.unknown:
        return Text("?", "bold yellow"), Text(question), Text(one_line(off_site_state.unknown), "dim"), Text("")
    if off_site_state.wrong:
        return Text("✗", "bold red"), Text(question, "bold red"), Text(one_line(off_site_state.wrong)), Text("P2")
    return Text("✓", "green"), Text(question), Text("yes"), Text("")


def _measured(target: Target, checks: Checks) -> dict[str, Answer]:
    printed = on(target, "sh -s", stdin=script_for_prometheus(checks.checks), timeout_s=LIMIT_S)
    return read_prometheus(printed, checks.checks)


def _seen(target: Target, checks: Checks) -> dict[str, Answer]:
    script = script_for_machine(checks.checks, target.settings)
    return read_machine(on(target, "sh -s", stdin=script, timeout_s=LIMIT_S), checks.checks)


def _from_outside(target: Target) -> str:
    """Return a line for each public service: its name, and "1" if it answers users, else "0"."""
    with ThreadPoolExecutor() as pool:
        public = [each.service for each in subjects("public", target.settings.services.declared)]
        answers = pool.map(lambda name: _answers_users(target, target.settings.services.named(name)), public)
        return "".join(f"{name} {int(answer)}\n" for name, answer in zip(public, answers, strict=True))


def _answers_users(target: Target, service: Service) -> bool:
    """Return whether the service's live path answers; with authentication, whether anything but an error does."""
    assert service.ingress  # noqa: S101 - only public services are asked
    assert service.health  # noqa: S101 - which the schema demands then
    side = target.side("public")
    code = side.http_status(
        service.ingress.domains[0],
        service.health.live,
        address=None if side.finds_names else side.ipv4,
        verify=target.settings.edge.acme not in ("internal", "other"),
        limit_s=PATIENCE_S,
    )
    return "200" <= code < ("500" if service.ingress.authentication else "400")


def _table(checks: Checks, asked: Asked, verdict: Verdict) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for check in checks.checks:
        answer = asked.answers[check.id]
        table.add_row(*_row(answer, verdict))
    return table


def _row(answer: Answer, verdict: Verdict) -> tuple[Text, Text, Text, Text]:
    check = answer.check
    if answer.bad:
        explained = answer in verdict.effects
        style = "yellow" if explained else "bold red"
        value = ", ".join(shown(check, reading) for reading in answer.bad)
        note = "explained by another fault" if explained else check.priority
        return Text("✗", style), Text(check.question, style), Text(one_line(value)), Text(note, style)
    if answer.unknown:
        return Text("?", "bold yellow"), Text(check.question), Text(one_line(answer.error), "dim"), Text("")
    value = "nothing to measure"
    if answer.readings:
        value = "yes" if check.unit == "boolean" else shown(check, worst(check, answer.readings))
    return Text("✓", "green"), Text(check.question), Text(one_line(value)), Text("")


def _walk(console: Console, checks: Checks, asked: Asked, verdict: Verdict, layer: str, title: str) -> None:
    answers = [asked.answers[check.id] for check in checks.checks if check.layer == layer]
    causes = [answer for answer in answers if answer in verdict.causes]
    state, style = ("✗", "bold red") if causes else ("✓", "green")
    if not causes and any(answer.bad or answer.unknown for answer in answers):
        state, style = ("!", "yellow")
    console.print(Text(f"{state} {layer}: {title}", style))
    for answer in answers:
        if answer.bad or answer.unknown:
            sign, question, value, note = _row(answer, verdict)
            console.print(Text("    ").append_text(sign).append(f" {question}  {value}  {note}"), soft_wrap=True)


def _sentence(verdict: Verdict, asked: Asked) -> Text:
    if not asked.reachable and not verdict.causes:
        return Text(
            "Users get answers, but the machine cannot be reached over SSH; next: check its firewall and sshd.",
            "bold red",
        )
    style = "bold red" if verdict.causes else "bold yellow" if verdict.unknown else "bold green"
    return Text(one_line(verdict.sentence), style)


def _exit_code(verdict: Verdict, off_site_state: OffSite | None = None) -> int:
    if verdict.causes or (off_site_state and off_site_state.wrong):
        return EXIT_FAIL
    return EXIT_COULD_NOT_VERIFY if verdict.unknown or (off_site_state and off_site_state.unknown) else EXIT_PASS
