"""The stanza and the first backup. What they do is a program on the machine; here is only when."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import context
from pyinfra.api import StringCommand, operation

from minipc.facts.backups import Backups, BackupsState

BIN = "/usr/local/lib/minipc"


@operation()
def stanza_present(repos: Sequence[int]) -> Generator[StringCommand, None, None]:
    """Has pgBackRest's stanza for the running database in every repository, and WAL arriving there."""
    found: Backups = context.host.get_fact(BackupsState)
    if found.live is None or found.live != found.stanza or set(found.stanza_repos) != set(repos):
        yield StringCommand(f"{BIN}/stanza")


@operation()
def first_backup_taken(repos: Sequence[int], files: bool) -> Generator[StringCommand, None, None]:
    """Has one backup in every repository: from the first converge on, there is something to restore."""
    found: Backups = context.host.get_fact(BackupsState)
    if not {f"repo{repo}" for repo in repos} <= set(found.taken):
        yield _start("minipc-backup@full.service")
    if files and "restic" not in found.taken:
        yield _start("minipc-backup@files.service")


def _start(unit: str) -> StringCommand:
    return StringCommand(f"systemctl start {unit} || {{ journalctl -u {unit} -n 20 --no-pager -o cat >&2; exit 1; }}")
