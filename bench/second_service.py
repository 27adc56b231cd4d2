"""A converge without changes of a machine with two services, compared with one of a machine with one service."""

from __future__ import annotations

import os

from bench.machine import enrol
from bench.noop import changed_operations, in_phase
from bench.results import Measurement
from bench.timing import Sample, alternate, cpu_ratio, ratio, timed
from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.core.variables import SERVICES_VARIABLE
from minipc.evidence.records import Gate
from minipc.evidence.run import Run
from minipc.pyinfra_ext.converge import converge, pyinfra_command
from minipc.services import images
from rehearsal import lab
from rehearsal.machines import lab_settings, prepare_secrets

TIMES_ONE = 1.1
SERVICES = {
    "one service": "examples/parking/services",
    "two services": "examples/parking/services:examples/parkday/services",
}


def measure(run: Run, rounds: int) -> Measurement:
    """Converge a machine with each set of services until nothing changes, then time both, one after the other."""
    names = {title: f"bench-{title.partition(' ')[0]}" for title in SERVICES}
    try:
        for title, name in names.items():
            with run.phase(f"second service: a converged machine with {title}"):
                _build(run, name, SERVICES[title])
        one, two = alternate(
            {
                title: in_phase(run, f"no-op, {title}", rounds, lambda title=title: _time(run, names[title], title))  # type: ignore[misc]
                for title in SERVICES
            },
            rounds,
        )
    finally:
        lab.down(list(names.values()))
    return Measurement(
        "A converge that finds nothing to do, with a second service",
        [one, two],
        [Gate.judge("no-op: with a second service", budget=TIMES_ONE, seen=ratio(two, one), unit="×")],
        [],
        [f"CPU: with two services {cpu_ratio(two, one):.2f} × one"],
    )


def _build(run: Run, name: str, services: str) -> None:
    before = os.environ.get(SERVICES_VARIABLE)
    os.environ[SERVICES_VARIABLE] = services
    try:
        prepare_secrets(LAB)
        for service in lab_settings(LAB).services.declared:
            images.ensure(service)
        machine = lab.up(name, disk_gb=6, podman=True)
        enrol(machine)
        for _ in range(2):  # the second one finds what services changed when they started
            converge(LAB, deploy_files(), log=run.log, limit=name)
    finally:
        os.environ.pop(SERVICES_VARIABLE)
        if before is not None:
            os.environ[SERVICES_VARIABLE] = before


def _time(run: Run, name: str, title: str) -> Sample:
    start = run.log.stat().st_size
    command = pyinfra_command(LAB, deploy_files(), "-y", "--limit", name)
    sample = timed(command, run.log, name, {SERVICES_VARIABLE: SERVICES[title]})
    if changed := changed_operations(run.log.read_text(errors="replace")[start:]):
        raise MinipcError(f"{changed} operations changed something, so this was not a no-op", f"read {run.log}")
    return sample
