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
TO_FILL_IN = ("inventory/production.py", "group_data/production.py")
# In the operator's key of group_data/production.py, as long as nobody has put in theirs.
EXAMPLE = "replace-with-your-public-key"


@dataclass(frozen=True)
class Finding:
    """One prerequisite.

    Attributes:
        needed_for: who would miss it.
        trouble: what is wrong with it; empty when it is met.
        note: what is still to be done, which is not wrong.
    """

    name: str
    needed_for: str
    trouble: str = ""
    note: str = ""

    def __str__(self) -> str:
        sign = SIGNS["fail"] if self.trouble else SIGNS["not-exercised"] if self.note else SIGNS["pass"]
        said = self.trouble or self.note
        return f"{sign} {self.name:15} ({self.needed_for}){': ' + said if said else ''}"


def examine(install: bool) -> int:
    """Prints a line for each prerequisite; returns the exit code."""
    findings = [_python(), _programs(), _disk(), _configuration(), _artifacts(), _lab(install)]
    for finding in findings:
        click.echo(str(finding))
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


def _configuration() -> Finding:
    def check() -> None:
        from minipc.inventory import targets

        targets("production")

    if EXAMPLE in _operator_keys():
        # A fresh clone is well: rehearsals need no machine.
        return Finding("configuration", "production", note=f"still the example; fill in {', '.join(TO_FILL_IN)}")
    return Finding("configuration", "production", _trouble(check))


def _operator_keys() -> str:
    """The keys that may log in, as group_data/production.py has them; empty when it can't be read."""
    from minipc.config.load import group_data

    try:
        return str(group_data("production").get("host_operator_keys"))
    except MinipcError:
        return ""


def _artifacts() -> Finding:
    """What a converge would miss is NOT EXERCISED, and what can be fetched it fetches: nothing here is wrong."""

    def check() -> None:
        missing.extend(_not_in_the_cache())

    missing: list[str] = []
    trouble = _trouble(check)
    note = f"not in the cache: {', '.join(missing)} (docs/howto/first-machine.md, step 4)" if missing else ""
    return Finding("artifacts", "production", trouble, note)


def _not_in_the_cache() -> list[str]:
    """Upstream files for this controller's architecture that are not there. Nothing is fetched or hashed."""
    from minipc.artifacts import default_store, own_arch
    from minipc.artifacts.download import Downloader

    rows = default_store(Downloader).status()
    return [row.name for row in rows if row.arch in (own_arch(), "all") and not row.cached]


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
