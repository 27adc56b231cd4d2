"""Alert rules: those of the questions, and those that each component brings with it (`templates/NAME/rules.yml.j2`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from minipc import yaml_text
from minipc.checks.pace import paced
from minipc.checks.schema import Check, Checks, Duration, Priority, Strict, Text
from minipc.errors import ConfigError

CHAPTER = "docs/runbook-triage.md"
NO_DATA = "NoData"
AFTERGLOW = "75s"

Rules = dict[str, Any]


class AlertLabels(Strict):
    """What routing goes by."""

    priority: Priority
    layer: Literal["edge", "runtime", "data", "collection", "client", "machine", "recovery", "monitoring"]


class AlertTexts(Strict):
    """What the operator reads. `each`: the label that tells which one, where there may be several."""

    meaning: Text
    next: Text
    each: Annotated[str, Field(pattern=r"^[a-z_]+$")] | None = None


class ComponentAlert(Strict):
    """An alert of a component."""

    alert: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]+$")]
    expr: Text
    lasting: Duration = Field("0s", alias="for")
    labels: AlertLabels
    annotations: AlertTexts


class Recording(Strict):
    """A recording rule."""

    record: Annotated[str, Field(pattern=r"^[a-z_]+(:[a-z0-9_]+)+$")]
    expr: Text
    labels: dict[str, str] = Field(default_factory=dict)


class RuleGroup(Strict):
    """A group as Prometheus knows it."""

    name: Text
    interval: Duration | None = None
    rules: list[ComponentAlert | Recording]


class RuleFile(Strict):
    """A component's `rules.yml.j2` once rendered."""

    groups: list[RuleGroup]


def of_questions(checks: Checks, runbook: str) -> Rules:
    """One alert for each question, and one where a question can't be answered.

    Args:
        runbook: address of the triage chapter.
    """
    causes = {name for check in checks.checks for name in check.explained_by}
    alerts = [_alert(check, runbook, check.id in causes) for check in checks.checks if check.alert]
    silent = [_no_data(check, runbook) for check in checks.checks if check.expression and check.no_data_after]
    return {"groups": [{"name": "checks", "rules": alerts}, {"name": "no data", "rules": silent}]}


def _alert(check: Check, runbook: str, explains: bool) -> Rules:
    rule: Rules = {"alert": check.alert, "expr": f"({check.expression}) {check.bad_when}"}
    if check.lasting != "0s":
        rule["for"] = check.lasting
    if explains:
        # Until a probe has seen that what it explains is over, too: else that would be told while it goes.
        rule["keep_firing_for"] = AFTERGLOW
    return rule | {
        "labels": {"priority": check.priority, "layer": check.layer, "check": check.id},
        "annotations": _texts(check, runbook)
        | {"value": "{{ $value | humanize }}"}
        | ({"each": f"{{{{ $labels.{check.each} }}}}"} if check.each else {}),
    }


def _no_data(check: Check, runbook: str) -> Rules:
    return {
        "alert": NO_DATA,
        "expr": f"absent({check.expression})",
        "for": check.no_data_after,
        "labels": {"priority": "P3" if check.priority == "P3" else "P2", "layer": "monitoring", "check": check.id},
        "annotations": {
            "question": check.question,
            "meaning": f"The question can't be answered: {check.question} Nothing would be noticed.",
            "next": "minipc status; which target is down: curl -s localhost:9090/api/v1/targets?state=active",
            "runbook": f"{runbook}#nodata",
        },
    }


def _texts(check: Check, runbook: str) -> dict[str, str]:
    shown = f"{{{{ $labels.{check.each} }}}}" if check.each else ""
    return {
        "question": check.question,
        "meaning": check.meaning,
        "next": check.next.replace("{each}", shown),
        "runbook": f"{runbook}#{check.runbook}",
    }


def of_component(component: str, text: str, runbook: str) -> Rules:
    """A component's own rules, checked, with the address of their section in the runbook.

    Args:
        text: the rendered file.

    Raises:
        ConfigError: names the component, the rule and what is wrong with it.
    """
    file = parse(component, text)
    groups = []
    for group in file.groups:
        rules = [
            rule.model_dump(by_alias=True, exclude_defaults=True)
            | ({"annotations": _component_texts(component, rule, runbook)} if isinstance(rule, ComponentAlert) else {})
            for rule in group.rules
        ]
        for rule, parsed in zip(rules, group.rules, strict=True):
            if isinstance(parsed, ComponentAlert):
                rule["labels"] = parsed.labels.model_dump() | {"component": component}
        groups.append(group.model_dump(exclude_defaults=True, exclude={"rules"}) | {"rules": rules})
    return {"groups": groups}


def _component_texts(component: str, rule: ComponentAlert, runbook: str) -> dict[str, str]:
    texts = rule.annotations
    which = {"each": f"{{{{ $labels.{texts.each} }}}}"} if texts.each else {}
    return {"meaning": texts.meaning, "next": texts.next, "runbook": f"{runbook}#{rule.alert.lower()}"} | which


def parse(component: str, text: str) -> RuleFile:
    """A component's rule file. Raises ConfigError."""
    where = f"templates/{component}/rules.yml.j2"
    try:
        return RuleFile.model_validate(yaml_text.parse(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no valid YAML once rendered: {error}", "mend the template") from None
    except ValidationError as error:
        problems = {f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()}
    raise ConfigError(f"{where}: {'; '.join(sorted(problems))}", "every alert needs labels and texts; see the others")


def dump(rules: Rules, pace: float = 1) -> bytes:
    """The file as Prometheus reads it."""
    text = paced(yaml_text.dump(rules), pace)
    return f"# Written by minipc (playbooks/checks.yaml, templates/*/rules.yml.j2).\n{text}".encode()


def inhibitions(checks: Checks) -> list[dict[str, list[str]]]:
    """What is silent while its explanation is an alert, for Alertmanager."""
    found: list[dict[str, list[str]]] = []
    for check in checks.checks:
        causes = sorted(checks.explanations(check.id) & {each.id for each in checks.checks if each.alert})
        if check.alert and causes:
            # An unanswered question silences nothing but itself.
            found.append(
                {
                    "source_matchers": [f'check=~"{"|".join(causes)}"', f'alertname!="{NO_DATA}"'],
                    "target_matchers": [f'check="{check.id}"'],
                }
            )
    return found
