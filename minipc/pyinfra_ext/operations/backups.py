"""Backup operations: run the programs on the machine (`minipc_machine`) when needed."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence

from pyinfra.api import StringCommand, operation

from minipc.pyinfra_ext.facts.backups import Backups, BackupsState
from minipc.pyinfra_ext.facts.memory import recall

BIN = "/usr/local/lib/minipc"


@operation()
def stanza_present(repos: Sequence[int], storage: str) -> Generator[StringCommand, None, None]:
    """Ensure that every repository has pgBackRest's stanza for the running database, and receives WAL.

    Args:
        storage: the bucket or storage box with the off-site backups; empty: they are on an off-site host.
    """
    found: Backups = recall(BackupsState)
    known = (found.stanza, set(found.stanza_repos), found.storage)
    if found.live is None or known != (found.live, set(repos), storage):
        yield StringCommand(f"{BIN}/stanza")


@operation()
def first_backup_taken(
    repos: Sequence[int], files: Sequence[str], storage: str
) -> Generator[StringCommand, None, None]:
    """Ensure that every repository contains a backup: from the first converge on, there is something to restore.

    Args:
        storage: as in `stanza_present`. A new one contains none of the backups that were taken.
    """
    found: Backups = recall(BackupsState)
    taken = set(found.taken) if found.stanza is None or found.storage == storage else set()
    if not {f"repo{repo}" for repo in repos} <= taken:
        yield _start("minipc-backup@full.service")
    if not set(files) <= taken:
        yield _start("minipc-backup@files.service")


@operation()
def state_restored(paths: Sequence[str], then: str = "true") -> Generator[StringCommand, None, None]:
    """Restore these paths from the newest backup of configuration and state that contains them.

    Only within a rebuild, and once: what is in no backup, or exists already, is left as it is.

    Args:
        then: shell command to run afterwards.
    """
    found: Backups = recall(BackupsState)
    missing = [path for path in paths if path not in found.state]
    if missing:
        yield StringCommand(f"{BIN}/restore-state {shlex.join(missing)} && {then}")


def _start(unit: str) -> StringCommand:
    return StringCommand(f"systemctl start {unit} || {{ journalctl -u {unit} -n 20 --no-pager -o cat >&2; exit 1; }}")
