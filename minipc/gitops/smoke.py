"""Smoke checks of a service: requests from the machine, and commands in pods of the release."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Sequence

from minipc.config.service import Request, Service, SmokeCheck
from minipc.core.verdicts import SIGNS
from minipc.gitops import trial
from minipc.gitops.cluster import Cluster, Object
from minipc.services import requests

# A request that changes nothing is sent again: right after a switch one may meet a pod that is ending.
ATTEMPTS, PAUSE_S = 3, 2.0
_REPEATABLE = ("GET", "HEAD")
MAX_BYTES = 1 << 20

Say = Callable[[str], None]


def send(cluster: Cluster, service: Service, request: Request, address: str, limit_s: float = 30) -> str:
    """Send a request from the machine as the ingress does; return what is wrong with the answer, or an empty text.

    Args:
        address: URL of the HTTP server, without a path.

    Raises:
        CouldNotVerifyError: the machine cannot be reached.
    """
    prepared = requests.prepare(request, secrets.token_hex(6))
    options = ["--max-time", f"{limit_s:.0f}", "--max-filesize", str(MAX_BYTES)]
    for name, value in (("Host", service.domain), ("X-Forwarded-Proto", "https")):
        if value and name not in prepared.headers:
            options += ["--header", f"{name}: {value}"]
    # The reason why there is no answer is printed in its place; curl's exit code says nothing more.
    command = f"{shlex.join(prepared.curl(address, *options))} 2>&1 || true"
    text = cluster.run(command, stdin=prepared.body.encode(), timeout_s=limit_s + 20)
    return requests.problem(request, *requests.read_answer(text))


def check(
    cluster: Cluster,
    service: Service,
    objects: Sequence[Object],
    say: Say,
    address: str | None,
    aliases: Sequence[Object] = (),
) -> bool:
    """Run a service's smoke checks in order until one fails; say what came of each; return whether all passed.

    Args:
        objects: of the release.
        address: URL of the HTTP server that is asked; None: the service has none, and no request is sent.
        aliases: `hostAliases` for the pods of commands.

    Raises:
        CouldNotVerifyError: the cluster doesn't answer.
    """
    for number, each in enumerate(service.smoke, start=1):
        if each.request is not None and address is None:
            say(f"{SIGNS['not-exercised']} smoke     {each.name}: NOT EXERCISED: the service has no ingress")
            continue
        found = (
            _requested(cluster, service, each, each.request, address or "")
            if each.request is not None
            else _commanded(cluster, service, objects, number, each, say, aliases)
        )
        say(f"{SIGNS['fail' if found else 'pass']} smoke     {each.name}" + (f": {found}" if found else ""))
        if found:
            return False
    return True


def _requested(cluster: Cluster, service: Service, each: SmokeCheck, request: Request, address: str) -> str:
    found = ""
    for attempt in range(ATTEMPTS if request.method in _REPEATABLE else 1):
        if attempt:
            time.sleep(PAUSE_S)
        found = send(cluster, service, request, address, each.time_limit_s)
        if not found:
            break
    return found


def _commanded(
    cluster: Cluster,
    service: Service,
    objects: Sequence[Object],
    number: int,
    each: SmokeCheck,
    say: Say,
    aliases: Sequence[Object],
) -> str:
    job = trial.smoke_job(service, objects, number, each.command or [], each.time_limit_s, aliases)
    done = trial.run(cluster, service.name, job, say)
    if not done.passed:
        for line in done.output:
            say(f"  | {line}")
    return "" if done.passed else done.why


def not_declared(service: Service) -> str:
    """Return the sentence for a service that declares no smoke checks; empty if it declares some."""
    if service.smoke:
        return ""
    return f"{SIGNS['not-exercised']} smoke     NOT EXERCISED: services/{service.name}.yaml declares no smoke checks"


def through_the_service(service: Service) -> str | None:
    """Return the URL where the ingress reaches a service; None if it has no ingress."""
    return f"http://127.0.0.1:{service.ingress.node_port}" if service.ingress else None
