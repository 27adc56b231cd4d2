"""Check everything that this computer needs before anything changes, and say how to get what is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import click

from minipc.artifacts import default_store, own_arch
from minipc.config.load import group_data
from minipc.core.environment import PRODUCTION
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, MinipcError
from minipc.core.paths import cache_dir
from minipc.core.verdicts import SIGNS
from minipc.remote.inventory import targets
from minipc.secrets.identity import protection_of
from playbooks.init_files import EXAMPLE, GROUP_DATA, INVENTORY

FREE_GB = 20
TO_FILL_IN = (INVENTORY, GROUP_DATA)


@dataclass(frozen=True)
class Finding:
    """One prerequisite.

    Attributes:
        needed_for: the commands that need it.
        trouble: why it is not met; empty if it is met.
        note: what is still to be done; not a failure.
    """

    name: str
    needed_for: str
    trouble: str = ""
    note: str = ""

    def __str__(self) -> str:
        sign = SIGNS["fail"] if self.trouble else SIGNS["not-exercised"] if self.note else SIGNS["pass"]
        said = self.trouble or self.note
        return f"{sign} {self.name:15} ({self.needed_for}){': ' + said if said else ''}"


def examine(check_lab: Callable[[], None]) -> int:
    """Print a line for each prerequisite, and return the exit code.

    Args:
        check_lab: raises MinipcError if the lab cannot run on this computer.
    """
    lab = Finding("lab", "rehearse, test", _trouble(check_lab))
    findings = [*controller(), _disk(), _artifacts(), lab]
    for finding in findings:
        click.echo(str(finding))
    return EXIT_FAIL if any(finding.trouble for finding in findings) else EXIT_PASS


def controller() -> list[Finding]:
    """Return what this computer needs to converge real machines."""
    return [_python(), _programs(), _configuration(), _age_key()]


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
        targets(PRODUCTION)

    if EXAMPLE in _operator_keys():
        # A fresh clone passes; rehearsals need no real machine.
        return Finding(
            "configuration", "production", note=f"still the example: `minipc init` fills in {', '.join(TO_FILL_IN)}"
        )
    return Finding("configuration", "production", _trouble(check))


def _age_key() -> Finding:
    """Report a key without a passphrase as a note. A key that does not exist yet is no finding."""

    def check() -> None:
        found.append(protection_of(path))

    path = PRODUCTION.age_key_file
    found: list[str] = []
    trouble = _trouble(check) if path.exists() else ""
    note = ""
    if found == ["without a passphrase"]:
        note = f"{path} has no passphrase: anyone who reads it has every secret; `minipc secrets passphrase` sets one"
    return Finding("age key", "production", trouble, note)


def _operator_keys() -> str:
    """Return the operator's keys in group_data/production.py; empty if the file cannot be read."""
    try:
        return str(group_data("production").get("host_operator_keys"))
    except MinipcError:
        return ""


def _artifacts() -> Finding:
    """Report files that are not in the cache as a note: a converge fetches them, or reports NOT EXERCISED."""

    def check() -> None:
        missing.extend(_not_in_the_cache())

    missing: list[str] = []
    trouble = _trouble(check)
    note = f"not in the cache: {', '.join(missing)} (`minipc artifacts fetch`)" if missing else ""
    return Finding("artifacts", "production", trouble, note)


def _not_in_the_cache() -> list[str]:
    """Return the upstream files for this computer's architecture that are not in the cache. Fetch and hash nothing."""
    rows = default_store().status()
    return [row.name for row in rows if row.arch in (own_arch(), "all") and not row.cached]


def _trouble(check: Callable[[], None]) -> str:
    try:
        check()
    except MinipcError as error:
        return str(error)
    return ""
