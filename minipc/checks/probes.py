"""What is requested of the services every minute, and what may be measured of them: values for the scrape templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from minipc.checks.load import load
from minipc.checks.rules import ComponentAlert, own_rules
from minipc.config import Settings
from minipc.config.service import Service
from minipc.core.addresses import bracketed
from minipc.core.ports import OPERATOR_INGRESS
from minipc.services.ports import metrics_port
from minipc.services.queues import queues

ANSWERS, DIRECT, PROTECTED = "answers", "direct", "protected"
"""Modules of the blackbox exporter: through the ingress, past it, and through an ingress that asks for a login."""

OUTSIDE = "outside"
"""Label `job` of the off-site host's requests."""


@dataclass(frozen=True)
class Probe:
    """A request that is repeated every minute.

    Attributes:
        module: of the blackbox exporter.
        url: what is requested.
        domain: name in the request and in the TLS handshake.
        labels: of the result.
    """

    module: str
    url: str
    domain: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Module:
    """A module of the blackbox exporter.

    Attributes:
        statuses: accepted ones.
        headers: of the request.
        refuse: regular expression; an answer whose body matches is a failure. Empty: none.
    """

    name: str
    statuses: list[int] = field(default_factory=lambda: [200])
    headers: Mapping[str, str] = field(default_factory=dict)
    refuse: str = ""


def modules(services: Iterable[Service]) -> list[Module]:
    """Return the modules that `probes` uses."""
    found = [
        Module(ANSWERS),
        # As the ingress asks.
        Module(DIRECT, headers={"X-Forwarded-Proto": "https"}),
        # Without a login the ingress refuses or redirects; any of that shows that it works.
        Module(PROTECTED, statuses=[200, 301, 302, 303, 307, 308, 401, 403, 407]),
    ]
    pages = [(service, name, page) for service in services for name, page in service.alerts.pages.items()]
    return found + [
        Module(_page_module(service, name), refuse=page.refuse) for service, name, page in pages if page.refuse
    ]


def probes(services: Iterable[Service]) -> list[Probe]:
    """Return all requests: of each service the live and ready path, through the ingress and past it, and its pages."""
    return [probe for service in services if service.ingress for probe in _of(service)]


def outside(settings: Settings) -> dict[str, list[Probe]]:
    """Return what the off-site host requests, by module: `watcher_urls`, or the live path of each public service."""
    if settings.watcher.urls is not None:
        found = [
            Probe(ANSWERS, url, urlsplit(url).netloc, {"job": OUTSIDE, "service": url}) for url in settings.watcher.urls
        ]
        return {ANSWERS: found} if found else {}
    by_module: dict[str, list[Probe]] = {}
    for service in settings.services.public:
        if service.ingress and service.health:
            domain = service.ingress.domains[0]
            url = f"https://{bracketed(settings.watcher.address or domain)}{service.health.live}"
            module = PROTECTED if service.ingress.authentication else ANSWERS
            probe = Probe(module, url, domain, {"job": OUTSIDE, "service": service.name})
            by_module.setdefault(module, []).append(probe)
    return by_module


def _of(service: Service) -> list[Probe]:
    ingress, health, domain = service.ingress, service.health, service.domain
    assert ingress and health and domain  # noqa: S101, PT018 - the schema demands them together
    found = []
    base = f"https://127.0.0.1:{ingress_port(service)}"
    for name, path in (("live", health.live), ("ready", health.ready)):
        labels = {"job": "probe", "service": service.name, "path": name}
        through = PROTECTED if ingress.authentication else ANSWERS
        found += [
            Probe(through, f"{base}{path}", domain, labels | {"via": "ingress"}),
            Probe(DIRECT, f"http://127.0.0.1:{ingress.node_port}{path}", domain, labels | {"via": "direct"}),
        ]
    for name, page in service.alerts.pages.items():
        labels = {"job": "probe", "service": service.name, "path": "page", "page": name, "via": "ingress"}
        alert = {"alert": "yes" if page.alert else "no"}
        module = _page_module(service, name) if page.refuse else ANSWERS
        found.append(Probe(module, f"{base}{page.path}", domain, labels | alert))
    return found


def ingress_port(service: Service) -> int:
    """Return the port of the machine where the ingress has the service's site."""
    for_operator = service.ingress is not None and service.ingress.audience == "operator"
    return OPERATOR_INGRESS if for_operator else 443


def _page_module(service: Service, name: str) -> str:
    return f"{service.name}-{name}"


def values(settings: Settings) -> dict[str, Any]:
    """Return what the templates of scrape files may use about services.

    Returns:
        measured: the processes with metrics, by service.
        probes: requests, by module.
        modules: of the blackbox exporter.
        metrics_port: the function.
        queues: the Redis instances of services.
        shown_labels: labels of a service's metrics that are shown to the operator, by service.
    """
    declared = settings.services.declared
    by_module: dict[str, list[Probe]] = {}
    for probe in probes(declared):
        by_module.setdefault(probe.module, []).append(probe)
    return {
        "measured": {
            each.name: sorted(name for name, process in each.processes.items() if process.metrics) for each in declared
        },
        "probes": by_module,
        "modules": modules(declared),
        "metrics_port": metrics_port,
        "queues": queues(settings),
        "shown_labels": {each.name: _shown_labels(each) for each in declared},
    }


def _shown_labels(service: Service) -> list[str]:
    """Return the labels that the service's own questions and alerts show."""
    questions = {check.each for check in load([service]).checks if check.owner and check.each}
    rules = [rule for group in own_rules(service) for rule in group.rules if isinstance(rule, ComponentAlert)]
    return sorted(questions | {rule.annotations.each for rule in rules if rule.annotations.each})
