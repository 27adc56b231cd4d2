"""The rehearsal: a blank disposable machine becomes the mini PC, is checked from outside, and is thrown away.

minipc rehearse [--as production] [--keep] [--strict]
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minipc import lab, records, ssh
from minipc.components import deploy_files
from minipc.converge import converge, plan
from minipc.display import console_for, print_summary, watch
from minipc.errors import MinipcError
from minipc.inventory import Target, the_target
from minipc.lab.inventory import entry, overrides, pin_lab_machine, stand_in_data
from minipc.records import Gate, Record
from minipc.run import PhaseFailedError, Run
from minipc.secrets.generate import generate
from minipc.timeline import OperationEnd, read
from minipc.variables import REHEARSE_AS_VARIABLE
from minipc.verification import verify
from playbooks.adopt import adopt

CONVERGE = "converge"
AGAIN = "converge again"


@dataclass(frozen=True)
class Options:
    """What a rehearsal may be told.

    Attributes:
        group: whose group_data is tried.
        keep: leave the machine up afterwards.
    """

    group: Literal["lab", "production"] = "lab"
    backend: str = "nspawn"
    keep: bool = False
    name: str = "rehearsal"


def rehearse(options: Options) -> tuple[Record, Path, Path]:
    """Runs the rehearsal.

    Returns:
        The record, its path, and the path of the HTML report.
    """
    run = Run("rehearsal")
    with watch(run.events), _group(options.group):
        machine: lab.Machine | None = None
        target: Target | None = None
        facts = records.Target(backend=options.backend, name=options.name, os="", kernel="", cpus=0, memory_mb=0)
        try:
            with run.phase("prepare", "programs, base image, secrets"):
                lab.ensure_prerequisites(install=True)
                lab.image.ensure()
                generate("lab")
            with run.phase("boot", "a blank machine"):
                machine = lab.up(options.name, keep=options.keep)
            with run.phase("adopt", "host key and identity"):
                adopt(_entry(machine, options.group), machine.host_key_fingerprint, pin_lab_machine)
                target = the_target("lab", machine.name)
                facts = describe(target, options.backend)
            _converge_twice(run, machine)
            run.versions |= versions(target)
            with run.phase("verify", "from both sides") as detail:
                detail(verify("lab", target, [], events=run.events, log=run.log).demand().summary)
        except PhaseFailedError:
            run.note(f"what was printed: {run.log}")
        finally:
            if machine and not options.keep:
                lab.down(machine.name)
    record = run.conclude(
        target=facts,
        group=options.group,
        runtime=target.settings.workload.runtime if target else None,
        converge_phase=CONVERGE,
        overrides=overrides(options.group) if options.group != "lab" else [],
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    if machine and options.keep:
        _print_how_to_reach(machine)
    return record, record_path, report_path


def _print_how_to_reach(machine: lab.Machine) -> None:
    console = console_for()
    console.print(
        f"  Kept     {machine.name}: `minipc lab ssh {machine.name}`; gone with `minipc lab down {machine.name}`"
    )
    console.print(f"           public side {machine.public_ipv4}, operator side {machine.operator_ipv4}")


@contextmanager
def _group(group: str) -> Iterator[None]:
    """Tells the inventory, here and in the processes started from here, whose values to use."""
    if group != "lab":
        os.environ[REHEARSE_AS_VARIABLE] = group
    try:
        yield
    finally:
        os.environ.pop(REHEARSE_AS_VARIABLE, None)


def _entry(machine: lab.Machine, group: str) -> tuple[str, dict[str, object]]:
    return entry(machine, **(stand_in_data(group) if group != "lab" else {}))


def _converge_twice(run: Run, machine: lab.Machine) -> None:
    """The second time must find nothing to do: idempotency is a gate."""
    with run.phase(CONVERGE, "deploys/site.py"):
        converge("lab", deploy_files(), log=run.log, events=run.events, limit=machine.name)
    before = len(_operations(run))
    with run.phase(AGAIN, "must find nothing to do") as detail:
        converge("lab", deploy_files(), log=run.log, events=run.events, limit=machine.name)
        changed = [operation for operation in _operations(run)[before:] if operation.changed]
        detail("; ".join(f"{each.component}: {each.name}" for each in changed) or "0 changes")
        run.gates.append(Gate.judge("changes of the second converge", budget=0, seen=len(changed), unit="changes"))
    with run.phase("plan", "must find nothing pending") as detail:
        pending, _ = plan("lab", deploy_files(), limit=machine.name)
        detail("; ".join(f"{each.component}: {each.name}" for each in pending) or "0 changes")
        run.gates.append(Gate.judge("changes that a plan finds", budget=0, seen=len(pending), unit="changes"))


def _operations(run: Run) -> list[OperationEnd]:
    return [event for event in read(run.events) if isinstance(event, OperationEnd)]


def describe(target: Target, backend: str) -> records.Target:
    """The machine as the record names it."""
    config = ssh.write_config([(target.alias, target.data)])
    command = (
        ". /etc/os-release; echo $PRETTY_NAME; uname -r; nproc; awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo"
    )
    lines = ssh.run(config, target.alias, command).stdout.decode().splitlines()
    if len(lines) != 4:
        raise MinipcError(f"{target.alias} doesn't tell what it is: {lines}", "log in and look")
    return records.Target(
        backend=backend, name=target.alias, os=lines[0], kernel=lines[1], cpus=int(lines[2]), memory_mb=int(lines[3])
    )


def versions(target: Target) -> dict[str, str]:
    """Package versions from the machine's release file."""
    config = ssh.write_config([(target.alias, target.data)])
    done = ssh.run(config, target.alias, "cat /etc/minipc/release")
    return {str(name): str(value) for name, value in json.loads(done.stdout)["versions"].items()}
