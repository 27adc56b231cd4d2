"""Where pods come from: commit, image, desired state and rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from minipc.config.service import Service
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, ConfigError
from minipc.core.verdicts import SIGNS
from minipc.gitops import application as argocd
from minipc.gitops.trace import Traced, answering, desired_state, trace
from playbooks.release_steps import Context


def show_trace(context: Context, services: Sequence[Service], what: str | None, subject: Callable[[str], str]) -> int:
    """Says where pods come from; returns the exit code: 1 when one runs another image than desired state names.

    Args:
        services: that are looked at.
        what: a pod, an address of a service, or None for all pods.
        subject: the first line of a commit of the code, empty when it is not known here.

    Raises:
        ConfigError: there is no such pod, or the address is no service's.
        CouldNotVerifyError: cluster or repository don't answer.
    """
    pod = what
    if what and "/" in what:
        service = _at(services, what)
        pod, request = answering(context.cluster, what, service)
        context.say(f"answered by {pod}, request {request}")
        services = [service]
    codes, seen = [EXIT_PASS], False
    for service in services:
        found = trace(context.cluster, service.name, pod)
        seen = seen or bool(found)
        if found:
            codes.append(_show(context, service, found, subject))
    if pod is not None and not seen:
        raise ConfigError(f"there is no pod {pod} of {_names(services)}", "`minipc trace` lists them")
    return max(codes)


def _at(services: Sequence[Service], url: str) -> Service:
    """Return the service that a URL belongs to; a path alone belongs to the only one. Raises ConfigError."""
    host = urlsplit(url).hostname
    found = [each for each in services if each.ingress and host in (None, *each.ingress.domains)]
    if len(found) != 1:
        domains = ", ".join(each.domain for each in services if each.domain) or "none"
        raise ConfigError(f"{url} is not the address of one service", f"the domains are: {domains}")
    return found[0]


def _names(services: Sequence[Service]) -> str:
    return ", ".join(each.name for each in services) or "a service"


def _show(context: Context, service: Service, found: Sequence[Traced], subject: Callable[[str], str]) -> int:
    say = context.say
    now = argocd.read(context.cluster, service.name)
    say(f"service  {service.name}")
    for origin, pods in _by_origin(found).items():
        commit, image, digest, runs = origin
        sign = SIGNS["pass"] if runs == digest else SIGNS["fail"] if runs else "…"
        say(f"{sign} version  {commit[:40]}  {subject(commit)}".rstrip())
        say(f"  image    {image}")
        say(f"  digest   {digest}" + ("" if runs == digest else f", but it runs {runs or 'nothing'}"))
        for each in pods:
            rollout = f", rollout {each.rollout} of {each.component}" if each.rollout else ""
            replaced = "" if each.current else ", being replaced"
            say(f"    {each.pod}  {each.state} since {each.started}{rollout}{replaced}")
    revision = desired_state(now, found)
    if revision:
        repository = context.repository
        say(f"desired state  {repository.commit(revision)}")
        changed = repository.last_change(f"{now.path}/release", revision)
        say(f"  release set  {changed} ({changed.author})")
        say(f"  last sync    {now.operation} at {now.operation_started} by {now.operation_by}")
    return EXIT_FAIL if any(each.runs and not each.as_stated for each in found) else EXIT_PASS


def _by_origin(found: Sequence[Traced]) -> dict[tuple[str, str, str, str], list[Traced]]:
    """Pods of one release together: version, image, digest as stated, digest as it runs."""
    groups: dict[tuple[str, str, str, str], list[Traced]] = {}
    for each in found:
        groups.setdefault((each.commit, each.image, each.digest, each.runs), []).append(each)
    return groups
