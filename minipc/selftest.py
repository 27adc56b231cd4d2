"""The project's own tests, as `make test` and CI run them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from minipc.errors import EXIT_FAIL, EXIT_PASS, MinipcError
from minipc.lab.prerequisites import ensure_prerequisites
from minipc.paths import ROOT
from minipc.records import Target
from minipc.run import Run, controller
from minipc.variables import EVENTS_VARIABLE

_BIN = Path(sys.executable).parent
_SHORT = ("-m", "not long")
_STATIC = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])


def run_tests(long: bool, pytest_args: Sequence[str]) -> int:
    """Runs the static checks, the unit tests and the lab tests; returns the exit code.

    Args:
        long: also the tests marked `long`.
        pytest_args: handed on; with any, the static checks are left out.
    """
    trouble = _prepare()
    results = [] if pytest_args else [_run(command) for command in _STATIC]
    if long:
        results.append(_recorded(pytest_args or ["tests/unit", "tests/lab"]))
    elif pytest_args:
        results.append(_pytest([*_SHORT, *pytest_args]))
    else:
        # Machines are shared, so the lab's tests run one by one.
        results += [_pytest([*_SHORT, "-n", "auto", "tests/unit"]), _pytest([*_SHORT, "tests/lab"])]
    if trouble:
        click.echo(f"NOT EXERCISED: everything in tests/lab: {trouble}")
    return EXIT_FAIL if any(results) else EXIT_PASS


def _prepare() -> str:
    """Installs what the lab needs; returns why it can't run, or an empty text."""
    try:
        ensure_prerequisites(install=True)
    except MinipcError as error:
        return str(error)
    return ""


def _run(command: Sequence[str]) -> int:
    click.echo(f"$ {' '.join(command)}")
    return subprocess.run([str(_BIN / command[0]), *command[1:]], cwd=ROOT, stdin=subprocess.DEVNULL).returncode


def _recorded(pytest_args: Sequence[str]) -> int:
    """All tests, with a dated record of what ran."""
    run = Run("test-long")
    with run.phase("tests"):
        code = _pytest(["-p", "minipc.verification_plugin", *pytest_args], {EVENTS_VARIABLE: str(run.events)})
    record = run.conclude(
        target=_this_machine(), group="lab", runtime=None, converge_phase="", overrides=[], components=None
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
    command = [str(_BIN / "pytest"), "-rs", "--durations=8", *arguments]
    click.echo(f"$ {' '.join(command[1:])}")
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=variables).returncode
