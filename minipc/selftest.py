"""The project's own tests, as `make test` and CI run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from minipc.errors import EXIT_FAIL, EXIT_PASS, MinipcError
from minipc.lab.prerequisites import ensure_prerequisites
from minipc.paths import ROOT

_BIN = Path(sys.executable).parent
_STATIC = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])


def run_tests(long: bool, pytest_args: Sequence[str]) -> int:
    """Runs the static checks, the unit tests and the lab tests; returns the exit code.

    Args:
        long: also the tests marked `long`.
        pytest_args: handed on; with any, the static checks are left out.
    """
    trouble = _prepare()
    results = [] if pytest_args else [_run(command) for command in _STATIC]
    results.append(_pytest(long, pytest_args))
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


def _pytest(long: bool, pytest_args: Sequence[str]) -> int:
    selection = [] if long else ["-m", "not long"]
    command = [str(_BIN / "pytest"), "-rs", "--durations=8", *selection, *(pytest_args or ["tests/unit", "tests/lab"])]
    click.echo(f"$ {' '.join(command[1:])}")
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=env).returncode
