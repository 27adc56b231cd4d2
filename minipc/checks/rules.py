"""Alert rules: of the questions, of each component (`templates/NAME/rules.yml.j2`), and of services' own files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from minipc.checks.schema import OWN_SECTION, Check, Checks, Duration, Priority, Text
from minipc.checks.scope import scoped
from minipc.checks.subjects import Subject, subjects
from minipc.checks.time_scale import scaled
from minipc.config.service import Service
from minipc.core import yaml_text
from minipc.core.errors import ConfigError
from minipc.core.strict import Strict

CHAPTER = "docs/runbook-triage.md"
NO_DATA = "NoData"
AFTERGLOW = "75s"

Rules = dict[str, Any]


class AlertLabels(Strict):
    """The labels that Alertmanager uses for routing."""

    priority: Priority
    layer: Literal["edge", "runtime", "data", "collection", "client", "machine", "recovery", "monitoring"]


class AlertTexts(Strict):
    """The texts for the operator. `each`: the label that names the affected thing, if there may be several."""

    meaning: Text
    next: Text
    each: Annotated[str, Field(pattern=r"^[a-z_]+$")] | None = None


class ComponentAlert(Strict):
    """An alert rule of a component."""

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
    """A rule group of Prometheus."""

    name: Text
    interval: Duration | None = None
    rules: list[ComponentAlert | Recording]


class RuleFile(Strict):
    """A component's rendered `rules.yml.j2`."""

    groups: list[RuleGroup]


def of_questions(checks: Checks, runbook: str, services: Sequence[Service] = ()) -> Rules:
    """Return one alert for each question, and one for each question without data.

    Args:
        runbook: address of the triage chapter.
        services: the services of the machine.
    """
    causes = {name for check in checks.checks for name in check.explained_by}
    alerts = [_alert(check, runbook, check.id in causes) for check in checks.checks if check.alert]
    silent = [_no_data(check, runbook, services) for check in checks.checks if check.expression and check.no_data_after]
    return {"groups": [{"name": "checks", "rules": alerts}, {"name": "no data", "rules": silent}]}


def _alert(check: Check, runbook: str, explains: bool) -> Rules:
    rule: Rules = {"alert": check.alert, "expr": f"({check.expression}) {check.bad_when}"}
    if check.lasting != "0s":
        rule["for"] = check.lasting
    if explains:
        # Keep firing until a probe has seen that the explained fault is over; its alert would fire meanwhile.
        rule["keep_firing_for"] = AFTERGLOW
    return rule | {
        "labels": _labels(check, check.priority, check.layer),
        "annotations": _texts(check, runbook)
        | {"value": "{{ $value | humanize }}"}
        | ({"each": _each(check)} if check.each or check.owner else {}),
    }


def _labels(check: Check, priority: str, layer: str) -> dict[str, str]:
    """Return the labels of an alert. The service of a generic question is a label of its series."""
    own = {"service": check.owner} if check.owner else {}
    return {"priority": priority, "layer": layer, "check": check.id} | own


def _each(check: Check) -> str:
    """Return the template that names the affected thing, with its service."""
    thing = f"{{{{ $labels.{check.each} }}}}" if check.each else ""
    return "/".join(part for part in (check.owner, thing) if part)


def _no_data(check: Check, runbook: str, services: Sequence[Service]) -> Rules:
    return {
        "alert": NO_DATA,
        "expr": _missing(check, services),
        "for": check.no_data_after,
        "labels": _labels(check, "P3" if check.priority == "P3" else "P2", "monitoring"),
        "annotations": {
            "question": check.question,
            "meaning": f"This question has no data: {check.question} A fault would not be noticed.",
            "next": "minipc status; then find the target: curl -s localhost:9090/api/v1/targets?state=active",
            "runbook": f"{runbook}#nodata",
        }
        | ({"each": _each(check)} if check.per else {}),
    }


def _missing(check: Check, services: Sequence[Service]) -> str:
    """Return an expression with a series for each thing that the question should have an answer about and has not."""
    if not check.per:
        return f"absent({check.expression})"
    wanted = " or ".join(_series(check, each) for each in subjects(check.per, services))
    return f"({wanted}) unless on ({check.each}) ({check.expression})"


def _series(check: Check, subject: Subject) -> str:
    """Return an expression with one series that has the labels of a subject."""
    named = f'label_replace(vector(1), "service", "{subject.service}", "", "")'
    return named if check.each == "service" else f'label_replace({named}, "part", "{subject.name}", "", "")'


def _texts(check: Check, runbook: str) -> dict[str, str]:
    shown = f"{{{{ $labels.{check.each} }}}}" if check.each else ""
    service = check.owner or "{{ $labels.service }}"
    return {
        "question": check.question,
        "meaning": check.meaning,
        "next": check.next.replace("{each}", shown).replace("{service}", service),
        "runbook": f"{runbook}#{check.runbook}",
    }


def of_component(component: str, text: str, runbook: str) -> Rules:
    """Check a component's rules and return them with the address of their section in the runbook.

    Args:
        text: the rendered file.

    Raises:
        ConfigError: a rule is not valid; the message names the component, the rule and the error.
    """
    file = parse_component(component, text)
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


def of_services(services: Sequence[Service], runbook: str) -> Rules:
    """Return the rules of all services' own files (`alerts.rules`), each confined to its service.

    Args:
        runbook: address of the triage chapter.

    Raises:
        ConfigError: the file is not valid, or an expression asks about something else than the service.
    """
    groups = []
    for service in services:
        for group in own_rules(service):
            rules = [_own_rule(service, rule, runbook) for rule in group.rules]
            kept = group.model_dump(exclude_defaults=True, exclude={"rules"})
            groups.append(kept | {"name": f"{service.name}: {group.name}", "rules": rules})
    return {"groups": groups}


def own_rules(service: Service) -> list[RuleGroup]:
    """Return the rule groups of a service's own file as written there. Raise ConfigError if it is not valid."""
    if not service.alerts.rules:
        return []
    path = service.beside(service.alerts.rules)
    return parse(path.read_text(encoding="utf-8"), str(path)).groups


def _own_rule(service: Service, rule: ComponentAlert | Recording, runbook: str) -> Rules:
    where = service.beside(service.alerts.rules or "")
    name = rule.alert if isinstance(rule, ComponentAlert) else rule.record
    try:
        expression = scoped(rule.expr, service.name)
    except ValueError as error:
        raise ConfigError(f"{where}: {name}: {error}", f"correct {where}") from None
    own = rule.model_dump(by_alias=True, exclude_defaults=True) | {"expr": expression}
    if isinstance(rule, Recording):
        return own | {"labels": rule.labels | {"service": service.name}}
    thing = f"/{{{{ $labels.{rule.annotations.each} }}}}" if rule.annotations.each else ""
    texts = {
        "each": f"{service.name}{thing}",
        "meaning": rule.annotations.meaning,
        "next": rule.annotations.next.replace("{service}", service.name),
        "runbook": f"{runbook}#{OWN_SECTION}",
    }
    return own | {"labels": rule.labels.model_dump() | {"service": service.name}, "annotations": texts}


def parse_component(component: str, text: str) -> RuleFile:
    """Parse a component's rendered rule file. Raise ConfigError if it is not valid."""
    return parse(text, f"templates/{component}/rules.yml.j2")


def parse(text: str, where: str) -> RuleFile:
    """Parse a rule file. Raise ConfigError if it is not valid.

    Args:
        where: path of the file, for the error message.
    """
    try:
        return RuleFile.model_validate(yaml_text.parse(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}", "fix the file") from None
    except ValidationError as error:
        problems = {f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()}
    raise ConfigError(
        f"{where}: {'; '.join(sorted(problems))}",
        "see the rules of another component",
    )


def dump(rules: Rules, time_scale: float = 1) -> bytes:
    """Return the content of the file that Prometheus reads."""
    text = scaled(yaml_text.dump(rules), time_scale)
    return f"# Written by minipc (playbooks/checks.yaml, templates/*/rules.yml.j2).\n{text}".encode()


def inhibitions(checks: Checks) -> list[dict[str, list[str]]]:
    """Return Alertmanager's inhibition rules: an alert is suppressed while an alert that explains it is firing.

    What explains an alert of one service is of the same service, or of the machine.
    """
    asked = [check for check in checks.checks if check.alert]
    found: list[dict[str, list[str]]] = []
    for check in asked:
        explaining = [each for each in asked if each.id in checks.explanations(check.id)]
        same = [each.id for each in explaining if each.of_services and check.of_services]
        other = [each.id for each in explaining if each.id not in same]
        for causes, equal in ((other, []), (same, ["service"])):
            names = "|".join(sorted(causes)).replace(".", "[.]")
            if names:
                # A question without data does not suppress other alerts.
                found.append(
                    {
                        "source_matchers": [
                            f'check=~"{names}"',
                            f'alertname!="{NO_DATA}"',
                        ],
                        "target_matchers": [f'check="{check.id}"'],
                        "equal": equal,
                    }
                )
    return found
