"""Find manual changes in the live cluster: compare what ArgoCD applied last with what is there now.

Needs no access to Git. Prints the result as JSON; with --metrics FILE it also writes the metrics that the alert uses.
Exit codes: 0 the comparison was possible, with or without drift; 1 it was not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipc_machine import metrics, schema
from minipc_machine.files import write_file
from minipc_machine.processes import run
from minipc_machine.program import EXIT_FAIL, EXIT_PASS, FailedError

KUBECTL = ["k3s", "kubectl"]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
TRACKING = "argocd.argoproj.io/tracking-id"
# Programs that write to managed objects: ArgoCD, and Kubernetes itself. Anybody else is a person.
CONTROLLERS = {"argocd-controller", "kube-controller-manager", "k3s", "deploy@", "minipc"}
# Programs of minipc set these with kubectl, and the comparison with what was applied covers the replicas.
OWN_FIELDS = re.compile(
    r"spec\.(replicas|suspend)|.*annotations\.(kubectl\.kubernetes\.io/(restartedAt|last-applied-configuration)"
    r"|deployment\.kubernetes\.io/revision|minipc\.local/.*)"
)
# How kubectl reports a cluster without ArgoCD, and one without the application.
NOT_THERE_YET = re.compile(r"doesn't have a resource type|\(NotFound\)")

MOST_FIELDS = 5
METRIC = "minipc_gitops_drift_objects"
OURS = {"argocd", "root"}
"""The applications of ArgoCD itself, which manage no service."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A changed object.

    Attributes:
        by: who changed it last, and `at`: when. Both are empty where Kubernetes does not say.
        added: fields that neither ArgoCD nor a controller set. A sync leaves them.
    """

    name: str
    by: str
    at: str
    added: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        # Kubernetes keeps no time of a scaling, and no name of a scaling to 0.
        when = f" at {self.at}" if self.at else ""
        text = f"{self.name} (by {self.by}{when})" if self.by else self.name
        if not self.added:
            return text
        more = ", …" if len(self.added) > MOST_FIELDS else ""
        fields = f"{', '.join(self.added[:MOST_FIELDS])}{more}"
        return f"{text}: {fields} set by hand; a sync leaves it, kubectl edit removes it"


@dataclass(frozen=True)
class Drift:
    """The result of a comparison.

    Attributes:
        changed: objects that differ from what ArgoCD applied.
        missing: names of objects that are gone.
        diff: what would restore what was applied.
        checked: how many objects were compared.
    """

    changed: list[Change]
    missing: list[str]
    diff: str
    checked: int

    @property
    def found(self) -> int:
        """Return how many objects drifted."""
        return len(self.changed) + len(self.missing)


def main(arguments: list[str]) -> int:
    """Compare, print the result, and write the metrics if asked to."""
    parser = argparse.ArgumentParser(prog="gitops-drift", description="Find manual changes in the live cluster.")
    parser.add_argument("--application", help="ArgoCD's application; default: each service's")
    parser.add_argument("--metrics", type=Path, help="write metrics to this file")
    parser.add_argument("--count", action="store_true", help="print only how many objects drifted")
    options = parser.parse_args(arguments)
    try:
        names = [options.application] if options.application else services()
        # What a sync changes would look like drift for a moment. The metric of that service stays as it was.
        idle = [name for name in names if not ((options.metrics or options.count) and is_syncing(name))]
        found = {name: compare(name) for name in idle}
    except (FailedError, ValueError, KeyError) as error:
        if NOT_THERE_YET.search(str(error)):
            # A converge installs this program before ArgoCD: nothing is managed, nothing differs.
            print(0)
            return EXIT_PASS
        print(f"the drift could not be determined: {error}", file=sys.stderr)
        return EXIT_FAIL
    if options.metrics:
        before = metrics_before(options.metrics)
        numbers = {name: found[name].found if name in found else before.get(name, 0) for name in names}
        write_file(options.metrics, metrics_of(numbers))
    if options.application and not options.count and found:
        print(schema.dump(found[options.application]).rstrip())
    else:
        print(sum(each.found for each in found.values()))
    return EXIT_PASS


def services() -> list[str]:
    """Return the names of the services' applications: all but ArgoCD's own."""
    listed = kubectl_json("get", "applications.argoproj.io", "-n", "argocd")["items"]
    return sorted(name for each in listed if (name := each["metadata"]["name"]) not in OURS)


def compare(application: str) -> Drift:
    """Compare the live objects of an application with what ArgoCD applied last.

    Before its first sync nothing is there that could have been changed.
    """
    defined = kubectl_json("get", "applications.argoproj.io", application, "-n", "argocd")
    wanted = managed(defined) if defined.get("status", {}).get("history") else []
    live = [found for each in wanted if (found := fetch(each))]
    present = {name_of(each) for each in live}
    missing = sorted(f"{each['kind']} {each['name']}" for each in wanted if (each["kind"], each["name"]) not in present)
    applied = [json.loads(each["metadata"]["annotations"][LAST_APPLIED]) for each in live if by_argocd(each)]
    foreign = [each for each in live if not by_argocd(each)]
    diff = difference(applied)
    names = set(re.findall(r"^diff .*/[^/ ]*\.([A-Z]\w*\.[^/\s]+)$", diff, re.M))
    changed = [each for each in live if each in foreign or added(each) or any(matches(each, name) for name in names)]
    return Drift([described(each) for each in changed], missing, diff, len(wanted))


def is_syncing(application: str) -> bool:
    """Return whether ArgoCD is syncing the application now."""
    status = kubectl_json("get", "applications.argoproj.io", application, "-n", "argocd").get("status", {})
    return status.get("operationState", {}).get("phase") in ("Running", "Terminating")


def managed(application: Object) -> list[Object]:
    """Return the resources that ArgoCD says it manages, without hooks; none before the first sync."""
    return [each for each in application.get("status", {}).get("resources", []) if not each.get("hook")]


def fetch(resource: Object) -> Object | None:
    """Return the live object, or None if it is gone."""
    group = resource.get("group")
    kind = (f"{resource['kind']}.{resource['version']}.{group}" if group else resource["kind"]).lower()
    options = ["-o", "json", "--show-managed-fields", "--ignore-not-found"]
    text = kubectl("get", kind, resource["name"], "-n", resource["namespace"], *options)
    return json.loads(text) if text.strip() else None


def name_of(live: Object) -> tuple[str, str]:
    """Return kind and name of an object."""
    return live["kind"], live["metadata"]["name"]


def by_argocd(live: Object) -> bool:
    """Return whether ArgoCD applied it last; after a manual `kubectl apply` the tracking annotation is missing."""
    applied = live["metadata"].get("annotations", {}).get(LAST_APPLIED)
    return bool(applied) and TRACKING in json.loads(applied)["metadata"].get("annotations", {})


def difference(applied: list[Object]) -> str:
    """Return what kubectl would change to restore what was applied; empty if nothing."""
    if not applied:
        return ""
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": applied})
    # Exit code 1: there is a difference.
    return kubectl("diff", "-f", "-", stdin=manifest, accepted=(0, 1))


def matches(live: Object, name: str) -> bool:
    """Return whether a file of kubectl's diff, KIND.NAMESPACE.NAME, is about this object."""
    meta = live["metadata"]
    return name == f"{live['kind']}.{meta.get('namespace', '')}.{meta['name']}"


def described(live: Object) -> Change:
    """Return the object's name, who last wrote to it besides ArgoCD and Kubernetes, and which fields are theirs."""
    last: Object = max(_others(live), key=lambda each: each.get("time", ""), default={})
    return Change(
        f"{live['kind']} {live['metadata']['name']}", last.get("manager", ""), last.get("time", ""), added(live)
    )


def added(live: Object) -> list[str]:
    """Return the fields that neither ArgoCD nor a controller owns, such as `spec.containers[sidecar]`.

    `kubectl diff` does not see a field that Git never named.
    """
    paths = {path for each in _others(live) for path in _leaves(each.get("fieldsV1", {}))}
    return sorted(path for path in paths if not OWN_FIELDS.fullmatch(path))


def _others(live: Object) -> list[Object]:
    return [
        each
        for each in live["metadata"].get("managedFields", [])
        if not any(each.get("manager", "").startswith(known) for known in CONTROLLERS)
        and each.get("subresource") != "status"
    ]


def _leaves(fields: Object, path: str = "") -> Iterator[str]:
    """Return the paths in `fieldsV1`. An element of a list that was added is one path, whatever is in it."""
    if path and (not fields or "." in fields):
        yield path
        return
    for key, value in fields.items():
        kind, _, name = key.partition(":")
        if kind == "f":
            yield from _leaves(value, f"{path}.{name}" if path else name)
        elif kind in ("k", "v"):
            element = json.loads(name)
            shown = next(iter(element.values())) if isinstance(element, dict) else element
            yield from _leaves(value, f"{path}[{shown}]")


def metrics_before(path: Path) -> dict[str, int]:
    """Return how many objects of each service had drifted when the metrics were written last."""
    text = path.read_text() if path.exists() else ""
    return {name: int(number) for name, number in re.findall(rf'^{METRIC}\{{service="([^"]+)"\}} (\d+)$', text, re.M)}


def metrics_of(numbers: dict[str, int]) -> str:
    """Return the metrics of a comparison in Prometheus' text format: how many objects of each service drifted."""
    return metrics.text_of(
        [
            metrics.Gauge(
                METRIC,
                "Objects of a service in the cluster that were changed or removed manually.",
                [({"service": name}, number) for name, number in sorted(numbers.items())],
            ),
            metrics.Gauge(
                "minipc_gitops_drift_checked_timestamp_seconds",
                "When the cluster was last compared.",
                [({}, int(time.time()))],
            ),
        ]
    )


def kubectl_json(*argv: str) -> Object:
    """Return what kubectl prints as JSON."""
    return dict(json.loads(kubectl(*argv, "-o", "json")))


def kubectl(*argv: str, stdin: str = "", accepted: tuple[int, ...] = (0,)) -> str:
    """Run kubectl and return its output. Raises FailedError."""
    environment = {"HOME": os.environ.get("HOME", "/root"), "KUBECTL_EXTERNAL_DIFF": "diff -u -N"}
    return run([*KUBECTL, *argv], 120, stdin, environment, accepted)
