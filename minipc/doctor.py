"""Checks everything a controller needs before anything changes, and says how to mend what is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import click

from minipc.errors import EXIT_FAIL, EXIT_PASS, MinipcError
from minipc.paths import cache_dir
from minipc.verdicts import SIGNS

FREE_GB = 20


@dataclass(frozen=True)
class Finding:
    """One prerequisite. `trouble` is empty when it is met; `needed_for` says who would miss it."""

    name: str
    needed_for: str
    trouble: str = ""


def examine(install: bool) -> int:
    """Prints a line for each prerequisite; returns the exit code."""
    findings = [_python(), _programs(), _disk(), _configuration("production"), _lab(install)]
    for finding in findings:
        sign = SIGNS["fail"] if finding.trouble else SIGNS["pass"]
        click.echo(
            f"{sign} {finding.name:15} ({finding.needed_for}){': ' + finding.trouble if finding.trouble else ''}"
        )
    return EXIT_FAIL if any(finding.trouble for finding in findings) else EXIT_PASS


def _python() -> Finding:
    old = sys.version_info < (3, 11)
    return Finding("Python", "everything", f"this is {sys.version.split()[0]}, 3.11 or newer is needed" if old else "")


def _programs() -> Finding:
    missing = [name for name in ("git", "ssh", "ssh-keyscan", "curl", "nmap") if not shutil.which(name)]
    return Finding(
        "programs",
        "everything",
        f"missing: {', '.join(missing)}; apt-get install git openssh-client curl nmap" if missing else "",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(cache_dir()).free // 1024**3
    return Finding("disk", "the lab", f"{free} GB free below {cache_dir()}, {FREE_GB} needed" if free < FREE_GB else "")


def _configuration(environment: str) -> Finding:
    def check() -> None:
        from minipc.inventory import targets

        targets("production")

    return Finding("configuration", environment, _trouble(check))


def _lab(install: bool) -> Finding:
    def check() -> None:
        from minipc.lab import ensure_prerequisites

        ensure_prerequisites(install=install)

    return Finding("lab", "rehearse, test", _trouble(check))


def _trouble(check: Callable[[], None]) -> str:
    try:
        check()
    except MinipcError as error:
        return str(error)
    return ""
