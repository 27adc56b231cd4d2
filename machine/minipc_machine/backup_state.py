"""Schemas of what the backup and restore programs store in `/var/lib/minipc/backups`; minipc reads these files too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from minipc_machine import schema
from minipc_machine.volume_files import VolumeResult

STATE = Path("/var/lib/minipc/backups")
OUTCOMES = STATE / "outcomes.json"
RESTORE = STATE / "restore.json"
STANZA = STATE / "stanza.json"
RESTORED_PATHS = STATE / "state.json"
RESTORED_VOLUMES = STATE / "volumes.json"
WITHOUT_STATE = Path("/var/lib/minipc/rebuild-without-state")
# The moment to which a rebuild returns, epoch seconds. Without it: as much as there is.
REBUILD_AT = Path("/var/lib/minipc/rebuild-at")


@dataclass(frozen=True)
class Outcome:
    """The last backup to one repository.

    Attributes:
        seconds: how long it took.
        ended: when it ended, epoch seconds.
        error: why it failed; empty if it succeeded.
        label: of the last successful backup.
        size: bytes that the last successful backup added to the repository.
        last_success: when a backup last succeeded, epoch seconds; 0 if none ever did.
        unfinished: a full backup was begun after it, and was interrupted or is running.
    """

    success: bool
    seconds: float
    ended: float
    error: str = ""
    label: str = ""
    size: int = 0
    last_success: float = 0
    unfinished: bool = False


@dataclass(frozen=True)
class Restore:
    """The restore that made this machine's database.

    Attributes:
        repo: number of the repository that the files came from.
        label: of the backup.
        bytes: size of the database.
        seconds: how long the copy took.
        at: when it began, epoch seconds.
        wal_until: the last WAL segment that recovery must reach.
        timeline: the timeline that recovery follows.
        gap_accepted: the operator accepted that WAL is missing.
        moment: the moment to which recovery returns, epoch seconds; None: to the end of the WAL.
        damaged: what is wrong with the backup that would have been the first choice; empty if nothing.
        received: segments from the off-site host that no repository has, and how many bytes of each there are.
        not_received: why WAL that was sent off-site could not be used; empty if it was, or if there was none.
    """

    repo: int
    label: str
    bytes: int
    seconds: float
    at: float
    wal_until: str | None = None
    timeline: int | None = None
    gap_accepted: bool = False
    moment: float | None = None
    damaged: str = ""
    received: dict[str, int] = field(default_factory=dict)
    not_received: str = ""


@dataclass(frozen=True)
class Stanza:
    """The database that pgBackRest's stanza was last checked for.

    Attributes:
        system_id: system identifier of that database.
        repos: repositories in which the stanza exists.
        storage: the bucket or storage box of repo2; empty: it is on an off-site host.
    """

    system_id: str
    repos: list[int]
    storage: str = ""


@dataclass(frozen=True)
class RestoredPath:
    """A path that a rebuild has asked the backup of configuration and state for.

    Attributes:
        snapshot: short ID of the snapshot it was restored from; None if it was left as it is.
        at: when, epoch seconds.
    """

    snapshot: str | None
    at: float


def moment() -> float | None:
    """Return the moment to which a rebuild returns, epoch seconds; None: it restores as much as there is."""
    return float(REBUILD_AT.read_text(encoding="utf-8")) if REBUILD_AT.exists() else None


def outcomes(text: str) -> dict[str, Outcome]:
    """Return the outcomes by repository ("repo1", "repo2", "restic"). Raises SchemaError."""
    return schema.loads(dict[str, Outcome], text, str(OUTCOMES), ignore_unknown=True)


def restored_paths(text: str) -> dict[str, RestoredPath]:
    """Return what a rebuild has restored, by path. Raises SchemaError."""
    return schema.loads(dict[str, RestoredPath], text, str(RESTORED_PATHS), ignore_unknown=True)


def restored_volumes(text: str) -> dict[str, VolumeResult]:
    """Return what a rebuild has restored, by volume (SERVICE/NAME). Raises SchemaError."""
    return schema.loads(dict[str, VolumeResult], text, str(RESTORED_VOLUMES), ignore_unknown=True)
