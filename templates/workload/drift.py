"""Who changed the live cluster behind Git's back: what ArgoCD applied last, compared with what is there now.

Needs no access to Git. Prints JSON; with --metrics FILE also writes what the alert looks at.
Exit codes: 0 it could be told (drift or not), 1 it could not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from typing import Any

KUBECTL = ["k3s", "kubectl"]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
TRACKING = "argocd.argoproj.io/tracking-id"
# Those that write to managed objects without being a person: ArgoCD, and Kubernetes itself.
CONTROLLERS = {"argocd-controller", "kube-controller-manager", "k3s", "deploy@"}
# kubectl's words for a cluster without ArgoCD, and for one without the application.
NOT_THERE_YET = re.compile(r"doesn't have a resource type|\(NotFound\)")

Object = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--application", default="workload")
    parser.add_argument("--metrics", help="write metrics here, in Prometheus' text format")
    parser.add_argument("--count", action="store_true", help="print how many objects, nothing else")
    arguments = parser.parse_args()
    try:
        if (arguments.metrics or arguments.count) and under_way(arguments.application):
            # What it changes would look like drift for a moment. The metric stays as it was.
            print(0)
            return 0
        found = compare(arguments.application)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        if NOT_THERE_YET.search(str(getattr(error, "stderr", ""))):
            # A converge brings this program before ArgoCD: nothing is managed, nothing differs.
            print(0)
            return 0
        print(f"drift can't be told: {type(error).__name__}: {getattr(error, 'stderr', '') or error}", file=sys.stderr)
        return 1
    if arguments.metrics:
        write(arguments.metrics, metrics(found))
    print(amount(found) if arguments.count else json.dumps(found))
    return 0


def amount(found: Object) -> int:
    return len(found["changed"]) + len(found["missing"])


def compare(application: str) -> Object:
    """Objects that were `changed` (each with who and when), or are `missing`; the `diff` that would bring them back."""
    wanted = managed(kubectl_json("get", "applications.argoproj.io", application, "-n", "argocd"))
    live = [found for each in wanted if (found := fetch(each))]
    there = {name_of(each) for each in live}
    missing = sorted(f"{each['kind']} {each['name']}" for each in wanted if (each["kind"], each["name"]) not in there)
    applied = [json.loads(each["metadata"]["annotations"][LAST_APPLIED]) for each in live if by_argocd(each)]
    foreign = [each for each in live if not by_argocd(each)]
    diff = difference(applied)
    names = set(re.findall(r"^diff .*/[^/ ]*\.([A-Z]\w*\.[^/\s]+)$", diff, re.M))
    changed = [each for each in live if each in foreign or any(matches(each, name) for name in names)]
    return {"changed": [described(each) for each in changed], "missing": missing, "diff": diff, "checked": len(wanted)}


def under_way(application: str) -> bool:
    """Whether ArgoCD is syncing just now."""
    status = kubectl_json("get", "applications.argoproj.io", application, "-n", "argocd").get("status", {})
    return status.get("operationState", {}).get("phase") in ("Running", "Terminating")


def managed(application: Object) -> list[Object]:
    """What ArgoCD says it manages, hooks left out. Nothing before the first sync."""
    return [each for each in application.get("status", {}).get("resources", []) if not each.get("hook")]


def fetch(resource: Object) -> Object | None:
    """The live object, None when it is gone."""
    group = resource.get("group")
    kind = (f"{resource['kind']}.{resource['version']}.{group}" if group else resource["kind"]).lower()
    options = ["-o", "json", "--show-managed-fields", "--ignore-not-found"]
    text = kubectl("get", kind, resource["name"], "-n", resource["namespace"], *options)
    return json.loads(text) if text.strip() else None


def name_of(live: Object) -> tuple[str, str]:
    return live["kind"], live["metadata"]["name"]


def by_argocd(live: Object) -> bool:
    """Whether ArgoCD applied it last: after someone's `kubectl apply` what is kept has no tracking mark."""
    applied = live["metadata"].get("annotations", {}).get(LAST_APPLIED)
    return bool(applied) and TRACKING in json.loads(applied)["metadata"].get("annotations", {})


def difference(applied: list[Object]) -> str:
    """What kubectl would change to get back to what was applied; empty when nothing."""
    if not applied:
        return ""
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": applied})
    done = run(["diff", "-f", "-"], manifest, {"KUBECTL_EXTERNAL_DIFF": "diff -u -N"})
    if done.returncode > 1:
        raise subprocess.CalledProcessError(done.returncode, done.args, stderr=done.stderr)
    return done.stdout


def matches(live: Object, name: str) -> bool:
    """Whether a file of kubectl's diff, KIND.NAMESPACE.NAME, is about this object."""
    meta = live["metadata"]
    return name == f"{live['kind']}.{meta.get('namespace', '')}.{meta['name']}"


def described(live: Object) -> Object:
    """An object's name, who else wrote to it last and when."""
    others = [
        each
        for each in live["metadata"].get("managedFields", [])
        if not any(each.get("manager", "").startswith(known) for known in CONTROLLERS)
        and each.get("subresource") != "status"
    ]
    last = max(others, key=lambda each: each.get("time", ""), default={})
    name = f"{live['kind']} {live['metadata']['name']}"
    return {"name": name, "by": last.get("manager", ""), "at": last.get("time", "")}


def metrics(found: Object) -> str:
    return (
        "# HELP minipc_gitops_drift_objects Objects that someone changed or removed behind Git's back.\n"
        "# TYPE minipc_gitops_drift_objects gauge\n"
        f"minipc_gitops_drift_objects {amount(found)}\n"
        "# HELP minipc_gitops_drift_checked_timestamp_seconds When that was found out.\n"
        "# TYPE minipc_gitops_drift_checked_timestamp_seconds gauge\n"
        f"minipc_gitops_drift_checked_timestamp_seconds {int(time.time())}\n"
    )


def write(path: str, text: str) -> None:
    """Whole or not at all: it is read at any time."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def kubectl(*argv: str) -> str:
    done = run(list(argv))
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, stderr=done.stderr)
    return done.stdout


def kubectl_json(*argv: str) -> Object:
    return json.loads(kubectl(*argv, "-o", "json"))


def run(
    argv: list[str], stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KUBECTL, *argv],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **(environment or {})},
    )


if __name__ == "__main__":
    sys.exit(main())
