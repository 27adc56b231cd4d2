"""Records made up for tests and for looking at the report: a small one, and one the size of a real rehearsal."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from minipc.evidence.records import (
    Artifact,
    Check,
    Component,
    Controller,
    DataClassResult,
    Draft,
    Exercised,
    Gate,
    Git,
    NotExercised,
    Operation,
    Override,
    Phase,
    PortState,
    Record,
    Target,
    conclude,
    sum_up,
)

START = datetime(2025, 3, 21, 9, 10, 5, tzinfo=UTC)


def draft_fields(start: datetime = START) -> dict[str, Any]:
    """The fields of a small rehearsal of one component in which everything passed: 60 s, two phases."""

    def at(seconds: float) -> datetime:
        return start + timedelta(seconds=seconds)

    operations = [
        Operation(
            phase="converge",
            component="redis",
            name="redis: install",
            started=at(30),
            seconds=6,
            changed=True,
            ok=True,
        ),
        Operation(
            phase="converge",
            component="redis",
            name="redis: configure",
            started=at(36),
            seconds=1.5,
            changed=False,
            ok=True,
        ),
    ]
    checks = [Check(component="redis", name="A full cache evicts old keys", outcome="passed", seconds=0.4)]
    return {
        "id": f"{start:%Y%m%d-%H%M%S}-00c0ffee",
        "kind": "rehearsal",
        "started": start,
        "ended": at(60),
        "git": Git(commit="3b0fd5d1c2a4e6f8091a2b3c4d5e6f708192a3b4", dirty=False),
        "controller": Controller(os="Debian 12", python="3.11.2", pyinfra="3.10", minipc="0.1.0"),
        "target": Target(backend="nspawn", name="lab1", os="Debian 13", kernel="6.1.0", cpus=2, memory_mb=2048),
        "group": "lab",
        "runtime": "systemd",
        "phases": [
            Phase(name="machine", started=at(0), ended=at(30), verdict="pass", detail="booted to SSH"),
            Phase(name="converge", started=at(30), ended=at(60), verdict="pass"),
        ],
        "components": [
            sum_up(
                "redis",
                data_class="cache",
                deploy="deploys/redis.py",
                operations=operations,
                checks=checks,
            )
        ],
        "operations": operations,
        "checks": checks,
        "exercised": Exercised(done=1, total=1),
        "gates": [Gate.judge("second converge", budget=0, seen=0, unit="changes")],
    }


def small(start: datetime = START, **changes: Any) -> Record:
    """The small rehearsal with some fields replaced, concluded."""
    return conclude(Draft(**(draft_fields(start) | changes)))


DATA_CLASSES = {"postgres": "must recover", "redis": "cache", "loki": "evidence", "prometheus": "evidence"}
COMPONENTS = (
    "host",
    "firewall",
    "vpn",
    "postgres",
    "redis",
    "backups",
    "prometheus",
    "alertmanager",
    "loki",
    "syslog_ng",
    "grafana",
    "k3s",
    "argocd",
    "workload",
    "edge",
    "drift",
)
STEPS = (
    "install",
    "configure: packages.conf",
    "configure: service settings",
    "configure: systemd override",
    "configure: users and passwords",
    "activate",
    "activate: wait until it answers",
)
QUESTIONS = (
    "The component answers on its port",
    "The port is not reachable from the public side",
    "The component survives a restart",
    "The component runs as its own user",
    "The logs reach the journal",
    "The configuration is valid",
    "The component refuses clients without credentials",
    "The component exports metrics",
    "The component restarts after a crash",
    "The unit is enabled at boot",
    "The component stays within its memory limit",
    "The component reports its version",
)
_SHARED = "an nspawn machine shares it with the controller"
_NO_ARTIFACT = "the artifact argocd-install.yaml is not available: no mirror configured and no local file"
GAPS = (
    NotExercised(what="time synchronisation", why=_SHARED, component="host"),
    NotExercised(what="kernel audit and sysctls", why=_SHARED, component="host"),
    NotExercised(what="ArgoCD sync waves", why=_NO_ARTIFACT, component="argocd"),
)


def big(start: datetime = START, *, seed: int = 7, failing: bool = True, slowness: float = 1.0) -> Record:
    """A full rehearsal: 16 components, some 120 operations, some 200 checks; by default it fails."""
    chance = random.Random(seed)
    now = start
    phases: list[Phase] = []

    def phase(name: str, seconds: float, detail: str = "", verdict: Any = "pass") -> datetime:
        nonlocal now
        begin, now = now, now + timedelta(seconds=seconds * slowness)
        phases.append(Phase(name=name, started=begin, ended=now, verdict=verdict, detail=detail))
        return begin

    phase("prepare", 4.2, "secrets resolved, 9 artifacts in the cache")
    phase("machine", 7.9, "debian-13 base image reused")
    operations = _operations(now, chance, "converge", slowness)
    spent = (max(o.started + timedelta(seconds=o.seconds) for o in operations) - now).total_seconds()
    phase("converge", (spent + 1.3) / slowness, f"{sum(o.changed for o in operations)} changes")
    second = _operations(now, chance, "second converge", slowness, again=True)
    spent = (max(o.started + timedelta(seconds=o.seconds) for o in second) - now).total_seconds()
    phase("second converge", (spent + 0.8) / slowness, "0 changes")
    phase("use and back up", 41, "18 240 rows written, full backup to repo1 and repo2")
    phase("destroy", 0.4, "power cut at a random moment")
    phase("rebuild", 118, "restored from off-site alone")
    checks = _checks(chance, failing)
    phase("verify", sum(c.seconds for c in checks), verdict="fail" if failing else "pass")
    phase("clean up", 1.1)

    skipped = {"argocd": _NO_ARTIFACT}
    components: list[Component] = [
        sum_up(
            name,
            data_class=DATA_CLASSES.get(name, "none"),
            deploy=f"deploys/{name}.py",
            operations=operations,
            checks=checks,
            not_exercised=skipped.get(name, ""),
        )
        for name in COMPONENTS
    ]
    return conclude(
        Draft(
            id=f"{start:%Y%m%d-%H%M%S}-{seed:08x}",
            kind="rehearsal",
            started=start,
            ended=now,
            git=Git(commit="3b0fd5d1c2a4e6f8091a2b3c4d5e6f708192a3b4", dirty=True),
            controller=Controller(os="Debian GNU/Linux 12", python="3.11.2", pyinfra="3.10", minipc="0.1.0"),
            target=Target(
                backend="nspawn",
                name="rehearsal-7f3a",
                os="Debian GNU/Linux 13",
                kernel="6.1.0-32-amd64",
                cpus=2,
                memory_mb=4096,
            ),
            group="production",
            runtime="systemd",
            overrides=[
                Override(
                    key="edge_acme",
                    production_value="acme-v02, api.example.org",
                    used_value="internal CA",
                    why="a disposable machine has no public name",
                ),
                Override(
                    key="postgres_shared_buffers",
                    production_value="4 GB",
                    used_value="512 MB",
                    why="the lab machine has 4 GB of memory",
                ),
            ],
            phases=phases,
            components=components,
            operations=operations + second,
            checks=checks,
            exercised=Exercised(done=14, total=17, not_exercised=list(GAPS)),
            gates=[
                Gate.judge("second converge", budget=0, seen=0, unit="changes"),
                Gate.judge("RPO against archive_timeout + 60 s", budget=360, seen=52, unit="s"),
                Gate.judge("no-op converge against Ansible", budget=10, seen=14.2, unit="×", bound="at-least"),
            ],
            rto_seconds=sum(p.seconds for p in phases if p.name in ("rebuild", "verify")),
            rto_budget_seconds=4 * 3600,
            rpo_seconds=52,
            rpo_budget_seconds=24 * 3600,
            data_classes=[
                DataClassResult(name="must recover", verdict="pass", rows_expected=18240, rows_found=18240),
                DataClassResult(name="evidence", verdict="pass", rows_expected=91200, rows_found=91200),
                DataClassResult(
                    name="rebuildable",
                    verdict="pass",
                    rows_expected=400,
                    rows_found=0,
                    detail="collected again",
                ),
            ],
            exposure=[
                port("at rest", "public", "443/tcp", "HTTPS", "open"),
                port("at rest", "vpn", "22/tcp", "SSH", "open"),
                port("during a converge", "public", "22/tcp", "SSH", "silent", "IPv4 silent, IPv6 open" * failing),
            ],
            versions={
                "postgresql-17": "17.4-1",
                "pgbackrest": "2.55.1-1",
                "redis-server": "5:8.0.2-1",
                "caddy": "2.6.2-12",
                "prometheus": "2.53.3+ds1-2",
                "loki": "3.4.2",
                "grafana": "11.5.2",
                "k3s": "v1.32.2+k3s1",
            },
            artifacts=[
                Artifact(name="k3s", version="v1.32.2+k3s1", sha256="a" * 64, origin="local"),
                Artifact(name="loki", version="3.4.2", sha256="0123456789abcdef" * 4, origin="locked"),
                Artifact(name="grafana", version="11.5.2", sha256="fedcba9876543210" * 4, origin="locked"),
                Artifact(name="argocd-install.yaml", version="2.14.3", sha256="c" * 64, origin="missing"),
            ],
        )
    )


def port(moment: str, side: Any, port: str, what: str, expected: str, seen: str = "") -> PortState:
    """Return the state of a port; `seen` defaults to what is expected."""
    seen = seen or expected
    ok = seen == expected
    families = "IPv4 and IPv6"
    return PortState(
        moment=moment, side=side, families=families, port=port, what=what, expected=expected, seen=seen, ok=ok
    )


def _operations(
    begin: datetime, chance: random.Random, phase: str, slowness: float, *, again: bool = False
) -> list[Operation]:
    operations = []
    now = begin + timedelta(seconds=0.6)
    for component in COMPONENTS:
        more = ("activate: reload",) if component in ("host", "postgres", "edge", "k3s", "loki") else ()
        for step in STEPS + more:
            seconds = 0.03 + chance.random() * 0.05 if again else 0.15 + chance.random() * 1.4
            if step == "install" and not again:
                seconds += {"postgres": 31, "host": 18, "grafana": 22, "k3s": 12}.get(component, 3)
            if step == "activate: wait until it answers" and component in ("workload", "loki") and not again:
                seconds += 6
            seconds *= slowness
            operations.append(
                Operation(
                    phase=phase,
                    component=component,
                    name=f"{component}: {step}",
                    started=now,
                    seconds=seconds,
                    changed=not again and chance.random() < 0.85,
                    ok=True,
                )
            )
            now += timedelta(seconds=seconds + 0.02)
    return operations


def _checks(chance: random.Random, failing: bool) -> list[Check]:
    checks = []
    for component in COMPONENTS:
        for question in QUESTIONS + (("The replica answers",) if component == "postgres" else ()):
            outcome: Any = "not-exercised" if component == "argocd" else "passed"
            message = "no ArgoCD without its artifact" if component == "argocd" else ""
            if failing and component == "edge" and question in QUESTIONS[6:8]:
                outcome = "failed"
                message = (
                    "AssertionError: GET https://api.lab.test/metrics from the public side\n"
                    "  expected 404\n  got      200 text/plain; 14 213 bytes\n"
                    "  see templates/edge/Caddyfile.j2, block `handle /metrics`"
                )
            checks.append(
                Check(
                    component=component,
                    name=question,
                    outcome=outcome,
                    seconds=0.02 + chance.random() * 0.3,
                    message=message,
                )
            )
    return checks


def past(record: Record, number: int = 14) -> list[Record]:
    """Earlier rehearsals, a few days apart, slowly getting faster, one of them failed."""
    return [
        big(
            record.started - timedelta(days=3 * back, hours=back),
            seed=100 + back,
            failing=back == 5,
            slowness=1.0 + back * 0.05,
        )
        for back in range(number, 0, -1)
    ]
