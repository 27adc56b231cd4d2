"""The runbook's triage chapter, rendered from the questions and from the components' own alerts."""

from __future__ import annotations

from collections.abc import Sequence

from minipc.checks.rules import CHAPTER, NO_DATA, ComponentAlert, Recording, parse
from minipc.checks.schema import Check, Checks
from minipc.checks.verdict import LAYERS, what_next
from minipc.paths import ROOT

FILE = ROOT / CHAPTER

_HEAD = """# Triage

Rendered from `playbooks/checks.yaml` and the components' rules by `python -m minipc.checks`; edit those.

| priority | somebody looks |
|---|---|
{sla}

1. `minipc status`: the questions below, in this order, answered on one screen; also when Prometheus is down.
2. `minipc triage`: asks the machine itself, walks from the door to the data, and ends with one sentence: where it is
   broken, the evidence, the next command. What another fault explains is not blamed, and its alert is silent.
3. The section of what it names, below. What is in capitals there stands for the thing that fails. `minipc` runs on the
   controller, everything else on the machine; where the service is the lab's stand-in, its processes are
   [units](reference/workload.md#as-the-labs-stand-in), not pods.

The way it walks: {walk}.

What you see, and what it is:

- Everything fails: [runtime](#runtime) when the process does not answer on the machine either, else
  [user-api](#user-api). Only users can't reach it: [outside](#outside).
- One screen fails: [screens](#screens).
- Screens answer with old data: [freshness](#freshness). With a worker behind it: [workers](#workers),
  [heartbeats](#heartbeats), [last-success](#last-success).
- Notifications don't arrive: [outbox](#outbox), [breakers](#breakers).
- The machine can't be reached: its power, its network; then the [runbook](runbook.md).
"""


def render(checks: Checks, rules: dict[str, str]) -> str:
    """The chapter.

    Args:
        rules: component -> its rendered rule file.
    """
    head = _HEAD.format(
        sla="\n".join(f"| {priority} | {text} |" for priority, text in checks.sla.items()),
        walk=" → ".join(layer for layer, _ in LAYERS),
    )
    parts = [head, "## The questions"]
    parts += [_question(check) for check in checks.checks]
    parts += ["## Alerts of the components", _no_data()]
    for component, text in rules.items():
        parts += [_alert(component, rule) for group in parse(component, text).groups for rule in _alerts(group.rules)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _alerts(rules: Sequence[ComponentAlert | Recording]) -> list[ComponentAlert]:
    return [rule for rule in rules if isinstance(rule, ComponentAlert)]


def _question(check: Check) -> str:
    alert = f"`{check.alert}`, within {check.within}" if check.alert else "none: only asked from outside"
    lines = [
        f"### {check.runbook}",
        f"**{check.question}** {check.priority}, {check.layer}. {check.meaning}",
        "",
        f"- Alert: {alert}. Bad when: `{check.bad_when}`{f' for {check.lasting}' if check.lasting != '0s' else ''}.",
        f"- Next: {what_next(check)}",
    ]
    if check.explained_by:
        lines.append(f"- Explained by: {', '.join(f'[{name}](#{name})' for name in check.explained_by)}.")
    return "\n".join(lines)


def _no_data() -> str:
    return (
        f"### {NO_DATA}\n**A question can't be answered.** monitoring. Nothing would be noticed.\n\n"
        "- Next: `minipc status` shows which one; on the machine `curl -s localhost:9090/api/v1/targets?state=active` "
        "says which target does not answer, and why."
    )


def _alert(component: str, rule: ComponentAlert) -> str:
    return "\n".join(
        [
            f"### {rule.alert}",
            f"{rule.labels.priority}, {rule.labels.layer}, from `{component}`. {rule.annotations.meaning}",
            "",
            f"- Next: {rule.annotations.next}",
        ]
    )
