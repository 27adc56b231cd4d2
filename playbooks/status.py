"""The operator's questions put to a machine: on one screen (`minipc status`), and down to the cause (`minipc triage`).

Status asks Prometheus, and the machine itself where Prometheus does not answer; of the off-site machine, its watcher.
Triage always asks the machine itself, because a measurement may be a minute old, and Prometheus only for what the
machine can't tell at once.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

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
from minipc.checks.verdict import LAYERS, Verdict, judge, shown, what_next, worst
from minipc.display import console_for
from minipc.errors import EXIT_COULD_NOT_VERIFY, EXIT_FAIL, EXIT_PASS, CouldNotVerifyError
from minipc.inventory import Environment, Target, offsite_target, the_target
from minipc.remote import on
from minipc.wording import one_line

# All questions are asked at once; none takes longer than its own patience.
LIMIT_S = 40
# The watcher's own words: templates/watcher/watcher.py.
WATCHER_STATE = "/var/lib/minipc-watcher/state.json"
WATCHED_THERE = ("units", "disk", "copies")


@dataclass(frozen=True)
class Asked:
    """All answers, by question.

    Attributes:
        prometheus: whether it answered.
        reachable: whether the machine could be asked at all.
    """

    answers: Mapping[str, Answer]
    prometheus: bool
    reachable: bool


def status(environment: Environment, alias: str | None = None, *, direct: bool = False) -> int:
    """Prints one line for each question and returns the exit code.

    Args:
        direct: don't ask Prometheus.
    """
    target, checks, console = the_target(environment, alias), load(), console_for()
    asked = ask(target, environment, checks, prefer="machine" if direct else "prometheus")
    verdict = judge(checks, asked.answers)
    table, beside = _table(checks, asked, verdict), off_site(environment, target)
    if beside:
        table.add_row(*_row_of_off_site(beside))
    console.print(table)
    if not asked.reachable:
        console.print(Text(f"{target.alias} can't be reached: asked from outside only", "bold red"))
    elif not asked.prometheus and not direct:
        console.print(Text("Prometheus does not answer: the machine itself was asked", "bold yellow"))
    console.print(_sentence(verdict, asked), soft_wrap=True)
    return _exit_code(verdict, beside)


def triage(environment: Environment, alias: str | None = None) -> int:
    """Walks from the door to the data, prints what it finds, ends with one sentence, and returns the exit code."""
    target, checks, console = the_target(environment, alias), load(), console_for()
    asked = ask(target, environment, checks, prefer="machine")
    verdict = judge(checks, asked.answers)
    if not asked.reachable:
        console.print(f"  ✗ {target.alias} can't be reached over SSH: its power, its network, then its firewall")
    for layer, title in LAYERS:
        _walk(console, checks, asked, verdict, layer, title)
    for cause in verdict.causes[1:]:
        console.print(Text(f"Also: {cause.check.meaning} Next: {what_next(cause.check, cause.bad)}", "yellow"))
    console.print(_sentence(verdict, asked), soft_wrap=True)
    return _exit_code(verdict)


def ask(target: Target, environment: Environment, checks: Checks, *, prefer: str) -> Asked:
    """Puts all questions.

    Args:
        prefer: "prometheus" or "machine": who is asked first; the other one fills the gaps.
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
            found[check.id] = read_outside(check, _from_outside(target, environment))
        elif check.id not in found:
            found[check.id] = Answer(check, (), "machine", "nobody could be asked")
    # In the order of asking.
    answers = {check.id: found[check.id] for check in checks.checks}
    return Asked(answers, bool(measured), reachable)


@dataclass(frozen=True)
class Beside:
    """What the watcher says of the off-site machine it runs on; `unknown` when it can't be asked."""

    wrong: str = ""
    unknown: str = ""


def off_site(environment: Environment, target: Target) -> Beside | None:
    """Prometheus measures nothing there, so its watcher is asked; None where the inventory has no such machine."""
    other = offsite_target(environment, target)
    if other is None:
        return None
    try:
        printed = on(other, f"systemctl is-active --quiet minipc-watcher && cat {WATCHER_STATE}", timeout_s=PATIENCE_S)
        state = json.loads(printed)
        wrong = [f"{name}: {state[name]['reason']}" for name in WATCHED_THERE if state[name]["failures"]]
    except (CouldNotVerifyError, ValueError, KeyError, TypeError) as error:
        return Beside(unknown=f"its watcher can't be asked: {error}")
    return Beside("; ".join(wrong))


def _row_of_off_site(beside: Beside) -> tuple[Text, Text, Text, Text]:
    question = "Is the off-site machine well?"
    if beside.unknown:
        return Text("?", "bold yellow"), Text(question), Text(one_line(beside.unknown), "dim"), Text("")
    if beside.wrong:
        return Text("✗", "bold red"), Text(question, "bold red"), Text(one_line(beside.wrong)), Text("P2")
    return Text("✓", "green"), Text(question), Text("yes"), Text("")


def _measured(target: Target, checks: Checks) -> dict[str, Answer]:
    printed = on(target, "sh -s", stdin=script_for_prometheus(checks.checks), timeout_s=LIMIT_S)
    return read_prometheus(printed, checks.checks)


def _seen(target: Target, checks: Checks) -> dict[str, Answer]:
    script = script_for_machine(checks.checks, target.settings)
    return read_machine(on(target, "sh -s", stdin=script, timeout_s=LIMIT_S), checks.checks)


def _from_outside(target: Target, environment: Environment) -> str:
    """1 when the public name answers where users are: in the lab on its public side, else from this controller."""
    domain = target.settings.edge.domain
    argv = ["curl", "--silent", "--fail", "--output", "/dev/null", "--max-time", str(PATIENCE_S), "--noproxy", "*"]
    if environment == "lab":
        from minipc.lab import find

        machine = find(target.alias)
        address = machine.public_ipv4 if machine else target.data["ssh_hostname"]
        argv = ["ip", "netns", "exec", "public", *argv, "--resolve", f"{domain}:443:{address}"]
    if target.settings.edge.acme in ("internal", "other"):
        argv.append("--insecure")
    try:
        done = subprocess.run([*argv, f"https://{domain}/api/livez"], capture_output=True, timeout=PATIENCE_S + 5)
    except (OSError, subprocess.TimeoutExpired):
        return "0"
    return "0" if done.returncode else "1"


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
        note = "explained by another" if explained else check.priority
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
            "Users get answers, but the machine can't be reached over SSH; next: its firewall, sshd.", "bold red"
        )
    style = "bold red" if verdict.causes else "bold yellow" if verdict.unknown else "bold green"
    return Text(one_line(verdict.sentence), style)


def _exit_code(verdict: Verdict, beside: Beside | None = None) -> int:
    if verdict.causes or (beside and beside.wrong):
        return EXIT_FAIL
    return EXIT_COULD_NOT_VERIFY if verdict.unknown or (beside and beside.unknown) else EXIT_PASS
