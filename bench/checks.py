"""`minipc verify` of all components, compared with the same checks over testinfra's default `ssh://` backend.

Both leave out the checks that stop something on the machine, as in production, and those of a client on the public or
the operator side: they wait for services and for silence, not for SSH.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from bench.results import Measurement
from bench.timing import Sample, alternate, cpu_ratio, ratio, timed
from minipc.config.components import select
from minipc.core.paths import ROOT
from minipc.core.variables import ENVIRONMENT_VARIABLE, HOST_VARIABLE
from minipc.evidence.records import Gate
from minipc.evidence.run import Run
from minipc.remote import ssh
from minipc.remote.inventory import Target

FASTER_THAN_TESTINFRA = 5.0
CONFIG_VARIABLE = "MINIPC_BENCH_SSH_CONFIG"
SELECTION = {"PYTEST_ADDOPTS": "-m 'not disturbs and not outside'"}


def measure(run: Run, target: Target, rounds: int) -> Measurement:
    """Run all checks, one contestant after the other."""
    ours, theirs = alternate(
        {
            "minipc verify": lambda number: _ours(run, target, number, rounds),
            "pytest, ssh:// as it comes": lambda number: _theirs(run, target, number, rounds),
        },
        rounds,
    )
    gate = Gate.judge(
        "verify: testinfra takes", budget=FASTER_THAN_TESTINFRA, seen=ratio(theirs, ours), unit="×", bound="at-least"
    )
    remarks = [f"CPU: testinfra takes {cpu_ratio(theirs, ours):.1f} × ours"]
    title = "All checks over SSH that disturb nothing, on a converged machine"
    return Measurement(title, [ours, theirs], [gate], remarks=remarks)


def _ours(run: Run, target: Target, number: int, rounds: int) -> Sample:
    program = str(Path(sys.executable).parent / "minipc")
    argv = [program, "verify", "--inventory", "lab", "--host", target.alias]
    return _in_phase(
        run, f"verify, minipc: {number} of {rounds}", lambda: timed(argv, run.log, target.alias, SELECTION)
    )


def _theirs(run: Run, target: Target, number: int, rounds: int) -> Sample:
    config = run.directory / "plain_ssh_config"
    config.write_text(without_sharing(ssh.write_config([(target.alias, target.data)]).read_text(encoding="utf-8")))
    files = [str(ROOT / component.verify) for component in select([])]
    argv = [sys.executable, "-m", "pytest", "-p", "bench.plain_ssh", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    argv += [f"--hosts=ssh://{target.alias}", f"--ssh-config={config}", *files]
    variables = SELECTION | {CONFIG_VARIABLE: str(config), ENVIRONMENT_VARIABLE: "lab", HOST_VARIABLE: target.alias}
    return _in_phase(
        run, f"verify, testinfra: {number} of {rounds}", lambda: timed(argv, run.log, target.alias, variables)
    )


def _in_phase(run: Run, name: str, contestant: Callable[[], Sample]) -> Sample:
    with run.phase(name) as detail:
        sample = contestant()
        detail(f"{sample.seconds:.2f} s, {sample.cpu_seconds:.2f} s CPU")
    return sample


def without_sharing(config: str) -> str:
    """Return the ssh_config without the lines for shared connections."""
    return "".join(line for line in config.splitlines(keepends=True) if not line.strip().startswith("Control"))
