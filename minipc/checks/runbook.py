"""Render the runbook's triage chapter from the questions and the components' alerts."""

from __future__ import annotations

from collections.abc import Sequence

from minipc.checks.rules import CHAPTER, NO_DATA, ComponentAlert, Recording, parse_component
from minipc.checks.schema import OWN_SECTION, Check, Checks
from minipc.checks.verdict import LAYERS, what_next
from minipc.core.paths import ROOT

FILE = ROOT / CHAPTER

_HEAD = """# Triage

Rendered from `playbooks/checks.yaml` and the components' rules by `python -m minipc.checks`; edit those.

| priority | reaction |
|---|---|
{sla}

1. Run `minipc status`. It answers the questions below on one screen, in this order, also when Prometheus is down.
   Questions about services name the service that fails; those that no service of the machine needs are left out.
2. Run `minipc triage`. It asks the machine itself, from the ingress to the data, and ends with one sentence: the
   location of the fault, the evidence, the next command. A fault that is explained by another one is not reported as
   the cause, and its alert is suppressed.
3. Read the section of the check that it names. A word in capitals there is a placeholder for the thing that fails. Run
   `minipc` on the controller and everything else on the machine.

The order of the layers: {walk}.

Symptoms and where to look:

- A service does not answer: [runtime](#runtime) if it does not answer on the machine either, else
  [answers](#answers). Only users cannot reach it: [outside](#outside).
- It answers, but with errors or late: [ready](#ready), [pages](#pages), [latency](#latency).
- A worker or another process does not run: [processes](#processes), [restarts](#restarts).
- Something that runs at night did not: [cron](#cron), [backup](#backup).
- Space runs out: [disk](#disk), [volumes](#volumes).
- The machine cannot be reached: check its power and its network; then follow the [runbook](runbook.md).
"""
_OWN = f"""### {OWN_SECTION}
**A question or an alert from a service's own files.** The message says what it means and what to do next. The files are
next to the service file, which names them: `alerts.checks` and `alerts.rules`."""


def render(checks: Checks, rules: dict[str, str]) -> str:
    """Return the chapter.

    Args:
        checks: all questions of playbooks/checks.yaml.
        rules: the rendered rule file of each component.
    """
    head = _HEAD.format(
        sla="\n".join(f"| {priority} | {text} |" for priority, text in checks.sla.items()),
        walk=" → ".join(layer for layer, _ in LAYERS),
    )
    parts = [head, "## The questions"]
    parts += [_question(check) for check in checks.checks]
    parts += [_OWN, "## Alerts of the components", _no_data()]
    for component, text in rules.items():
        parts += [
            _alert(component, rule)
            for group in parse_component(component, text).groups
            for rule in _alerts(group.rules)
        ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _alerts(rules: Sequence[ComponentAlert | Recording]) -> list[ComponentAlert]:
    return [rule for rule in rules if isinstance(rule, ComponentAlert)]


def _question(check: Check) -> str:
    alert = f"`{check.alert}`, within {check.within}" if check.alert else "none, it can only be asked from outside"
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
        f"### {NO_DATA}\n**A question has no data.** monitoring. A fault would not be noticed.\n\n"
        "- Next: `minipc status` shows the question; on the machine "
        "`curl -s localhost:9090/api/v1/targets?state=active` shows the target that does not answer, and why."
    )


def _alert(component: str, rule: ComponentAlert) -> str:
    # The other lines of the digest are a template of Prometheus.
    meaning = rule.annotations.meaning.splitlines()[0]
    return "\n".join(
        [
            f"### {rule.alert}",
            f"{rule.labels.priority}, {rule.labels.layer}, from `{component}`. {meaning}",
            "",
            f"- Next: {rule.annotations.next}",
        ]
    )
