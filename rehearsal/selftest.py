"""The project's own tests, as `make test` and CI run them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from minipc.core.environment import LAB
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, MinipcError
from minipc.core.paths import ROOT
from minipc.core.variables import EVENTS_VARIABLE
from minipc.evidence.records import Target
from minipc.evidence.run import Run, controller
from rehearsal.lab.prerequisites import ensure_prerequisites

_BIN = Path(sys.executable).parent
_SHORT = ("-m", "not long")
_STATIC = ["pre-commit", "run", "--all-files"]
_UNIT_TESTS = ["tests/unit", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("examples/*/tests/rules")))]
_LAB_TESTS = ["tests/lab", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("examples/*/tests/lab")))]
# The table of all files would push the names of failed tests out of what CI keeps: `coverage report` prints it.
_COVERAGE = ["--cov", "--cov-report="]
# Measured on Python 3.11: coverage nearly doubles the processor time of the unit tests (73 s to 132 s), so a plain
# `pytest` runs without it. Python 3.12 and newer have a faster way to count lines.
_COVERAGE_ENV = {"COVERAGE_CORE": "sysmon"} if sys.version_info >= (3, 12) else {}


def run_tests(long: bool, pytest_args: Sequence[str]) -> int:
    """Run the static checks, the unit tests and the lab tests. Return the exit code.

    Args:
        long: also the tests marked `long`.
        pytest_args: handed on; with any, the static checks are left out.
    """
    trouble = _prepare()
    results = [] if pytest_args else [_run(_STATIC)]
    if long:
        results.append(_recorded(pytest_args or [*_UNIT_TESTS, *_LAB_TESTS]))
    elif pytest_args:
        results.append(_pytest([*_SHORT, *pytest_args]))
    else:
        # Machines are shared, so the lab's tests run one by one.
        unit = _pytest([*_SHORT, "-n", "auto", *_COVERAGE, *_UNIT_TESTS], _COVERAGE_ENV)
        click.echo("Coverage of the unit tests, in percent:")
        _run(["coverage", "report", "--format=total"])
        results += [unit, _pytest([*_SHORT, *_LAB_TESTS])]
    if trouble:
        click.echo(f"NOT EXERCISED: everything in tests/lab and examples/*/tests/lab: {trouble}")
    return EXIT_FAIL if any(results) else EXIT_PASS


def _prepare() -> str:
    """Install what the lab needs. Return why it cannot run, or an empty text."""
    try:
        ensure_prerequisites(install=True)
    except MinipcError as error:
        return str(error)
    return ""


def _run(command: Sequence[str]) -> int:
    click.echo(f"$ {' '.join(command)}")
    return subprocess.run([str(_BIN / command[0]), *command[1:]], cwd=ROOT, stdin=subprocess.DEVNULL).returncode


def _recorded(pytest_args: Sequence[str]) -> int:
    """Run all tests and write a dated record."""
    run = Run("test-long")
    with run.phase("tests"):
        code = _pytest(["-p", "minipc.verification.pytest_plugin", *pytest_args], {EVENTS_VARIABLE: str(run.events)})
    record = run.conclude(
        target=_this_machine(), group=LAB, runtime=None, converge_phase="", overrides=[], components=None
    )
    report, path = run.publish(record)
    click.echo(f"Report {report}\nRecord {path}")
    return code


def _this_machine() -> Target:
    here = controller()
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**2
    return Target(
        backend="controller",
        name=platform.node(),
        os=here.os,
        kernel=platform.release(),
        cpus=os.cpu_count() or 0,
        memory_mb=memory_mb,
    )


def _pytest(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    command = [str(_BIN / "pytest"), "-rsfE", "--durations=8", *arguments]
    click.echo(f"$ {' '.join(command[1:])}")
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=variables).returncode
