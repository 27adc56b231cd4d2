"""The stanza and the first backup. What they do is a program on the machine; here is only when."""

from __future__ import annotations

import shlex
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


@operation()
def state_restored(paths: Sequence[str], then: str) -> Generator[StringCommand, None, None]:
    """Has what the lost machine kept in these paths, from the newest backup of configuration and state that has it.

    Within a rebuild only, and once: what was not in a backup then, or is here already, is left as it is.

    Args:
        then: a command for what follows from them.
    """
    found: Backups = context.host.get_fact(BackupsState)
    missing = [path for path in paths if path not in found.state]
    if missing:
        yield StringCommand(f"{BIN}/restore-state {shlex.join(missing)} && {then}")


def _start(unit: str) -> StringCommand:
    return StringCommand(f"systemctl start {unit} || {{ journalctl -u {unit} -n 20 --no-pager -o cat >&2; exit 1; }}")
