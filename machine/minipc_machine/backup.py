"""Take backups: backup full|diff|files|state|volumes|unfinished…

`full` and `diff` are backups of the database by pgBackRest, one repository after the other. A full backup that was
interrupted is repeated by the next of both, or by `unfinished`, which does nothing else. `files` sends configuration
and state to restic, then each volume of the services; `state` and `volumes` send one of the two. If one fails, the next
is still tried. Every outcome becomes a metric.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from minipc_machine import backup_state, clock, schema, volume_backup
from minipc_machine.backup_state import Outcome
from minipc_machine.files import write_file
from minipc_machine.locks import awake, locked
from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.processes import CommandError
from minipc_machine.program import EXIT_FAIL, EXIT_PASS, FailedError, say
from minipc_machine.repositories import (
    NO_REPOSITORY,
    Settings,
    Summary,
    backup_summary,
    ensure_reachable,
    parent,
    pgbackrest,
    repository,
    restic,
    settings,
)
from minipc_machine.volume_files import Volume

LOCK = backup_state.STATE / "backup.lock"
OUTCOMES = backup_state.OUTCOMES
KINDS = ("full", "diff", "files", "state", "volumes", "unfinished")
LOCK_WAIT_S = 4 * 3600


@dataclass(frozen=True)
class Taken:
    """A backup: its label, and the bytes it added to the repository."""

    label: str
    size: int


def main(kinds: list[str]) -> int:
    """Take backups of these kinds. Raises FailedError if the arguments are wrong."""
    if not kinds or set(kinds) - set(KINDS):
        raise FailedError(f"usage: backup {'|'.join(KINDS)}…")
    config = settings()
    signal.signal(signal.SIGTERM, _terminated)
    with locked(LOCK, "backup", LOCK_WAIT_S), awake("backup"):
        succeeded = [each for kind in kinds for each in _take(config, kind)]
    return EXIT_PASS if all(succeeded) else EXIT_FAIL


def _take(config: Settings, kind: str) -> list[bool]:
    if kind in ("full", "diff", "unfinished"):
        return [attempt_database(config, repo, kind) for repo in config.repos]
    if config.restic is None:
        what = "".join(f", {each.tag}" for each in config.volumes)
        say(f"NOT EXERCISED: not backed up because there is no off-site host: configuration and state{what}")
        return []
    taken = [] if kind == "volumes" else [attempt(config, "restic", partial(files, config))]
    volumes = [] if kind == "state" else config.volumes
    return taken + [attempt(config, each.tag, partial(volume, config, each)) for each in volumes]


def attempt_database(config: Settings, repo: int, kind: str) -> bool:
    """Take a backup of the database, a full one if the last full one was interrupted; return whether it succeeded."""
    name = f"repo{repo}"
    interrupted = _before(name).unfinished
    if kind == "unfinished" and not interrupted:
        return True
    if interrupted:
        say(f"{name}: the last full backup was interrupted; it is repeated")
        kind = "full"
    return attempt(config, name, partial(database, config, repo, kind), full=kind == "full")


def attempt(config: Settings, repo: str, take: Callable[[], Taken], *, full: bool = False) -> bool:
    """Take one backup, store the outcome and publish all outcomes; return whether it succeeded.

    Args:
        full: repeat it if it is interrupted, and not only when its timer starts it again.
    """
    parts = {"restic", *(f"repo{number}" for number in config.repos), *(each.tag for each in config.volumes)}
    # Without those of volumes and repositories that are gone.
    outcomes = {name: outcome for name, outcome in _outcomes().items() if name in parts}
    started, before = time.time(), _before(repo)
    if full:
        # A power cut leaves this.
        write_file(OUTCOMES, schema.dump(outcomes | {repo: replace(before, unfinished=True)}))
    try:
        taken = take()
        ended = time.time()
        outcome = Outcome(success=True, seconds=0, ended=ended, label=taken.label, size=taken.size, last_success=ended)
    except FailedError as error:
        # At a shutdown, pgBackRest gets the signal, too, and may end first.
        interrupted = "terminated on signal" in str(error)
        outcome = replace(before, success=False, ended=time.time(), error=str(error), unfinished=full and interrupted)
        print(f"{repo}: FAILED: {error}", file=sys.stderr, flush=True)
    except BaseException as error:
        outcome = replace(before, success=False, ended=time.time(), error=f"interrupted: {error!r}", unfinished=full)
        _store(config, outcomes | {repo: outcome})
        raise
    outcome = replace(outcome, seconds=round(outcome.ended - started, 1))
    _store(config, outcomes | {repo: outcome})
    if outcome.success:
        say(f"{repo}: {outcome.label}, {outcome.size} bytes stored, {outcome.seconds} s")
    return outcome.success


def _store(config: Settings, outcomes: dict[str, Outcome]) -> None:
    write_file(OUTCOMES, schema.dump(outcomes))
    publish(outcomes, config.paths)


def _before(repo: str) -> Outcome:
    return _outcomes().get(repo, Outcome(success=False, seconds=0, ended=0))


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_FAIL)


def _outcomes() -> dict[str, Outcome]:
    return backup_state.outcomes(OUTCOMES.read_text()) if OUTCOMES.exists() else {}


def database(config: Settings, repo: int, kind: str) -> Taken:
    """Back up the database to one repository. With a clock that may be wrong, nothing is removed from it.

    Raises:
        FailedError: pgBackRest failed, or the backup contains damaged pages.
    """
    stored = repository(config.stanza, repo).get("backup", [])
    doubt = clock.doubt([each["timestamp"]["stop"] for each in stored], time.time())
    meaning = "1 if no backup was removed from the repository, because the clock may be wrong."
    stopped = Gauge("minipc_backup_expiry_stopped", meaning, [({"repo": f"repo{repo}"}, bool(doubt))])
    write_metrics(f"minipc_expiry_repo{repo}", [stopped])
    if doubt:
        say(f"repo{repo}: EXPIRY STOPPED: {doubt}. docs/reference/repositories.md says what to do")
    keep = ["--no-expire-auto"] if doubt else []
    pgbackrest(f"--stanza={config.stanza}", f"--repo={repo}", f"--type={kind}", *keep, "backup")
    newest = repository(config.stanza, repo)["backup"][-1]
    # pgBackRest stores damaged pages as they are and reports success.
    if newest.get("error"):
        raise FailedError(
            f"{newest['label']} in repo{repo} contains damaged pages of the running database: `pgbackrest --stanza="
            f"{config.stanza} --repo={repo} --set={newest['label']} info` lists them; earlier backups may be intact"
        )
    return Taken(newest["label"], newest["info"]["repository"]["delta"])


def files(config: Settings) -> Taken:
    """Back up configuration and state; a path that does not exist is reported and is not an error."""
    present = [path for _, path in config.paths if Path(path).exists()]
    for component, path in config.paths:
        if path not in present:
            say(f"NOT EXERCISED: {component}: {path} does not exist")
    _ensure_repository(config)
    command = ["backup", "--json", "--quiet", "--host", config.host, "--tag", "minipc"]
    command += [*parent(config, "minipc"), *present]
    return _taken(backup_summary(restic(config, *command)))


def volume(config: Settings, which: Volume) -> Taken:
    """Back up a volume of a service. Raises FailedError as `volume_backup.back_up` does."""
    _ensure_repository(config)
    return _taken(volume_backup.back_up(config, which))


def _taken(summary: Summary) -> Taken:
    return Taken(summary.snapshot_id[:8], summary.data_added_packed)


def _ensure_repository(config: Settings) -> None:
    ensure_reachable(config)
    try:
        restic(config, "cat", "config", timeout_s=120)
    except CommandError as error:
        if error.returncode != NO_REPOSITORY:
            raise
        restic(config, "init", timeout_s=120)
        say("restic: created a new repository")


def publish(outcomes: Mapping[str, Outcome], paths: Sequence[tuple[str, str]]) -> None:
    """Write the outcomes as metrics; a backup that never succeeded has no time of success and no size."""
    by_repo = [({"repo": repo}, outcome) for repo, outcome in sorted(outcomes.items())]
    succeeded = [(labels, outcome) for labels, outcome in by_repo if outcome.last_success]
    write_metrics(
        "minipc_backups",
        [
            Gauge(
                "minipc_backup_success",
                "1 when the last backup to this repository succeeded.",
                [(labels, outcome.success) for labels, outcome in by_repo],
            ),
            Gauge(
                "minipc_backup_last_success_timestamp_seconds",
                "When a backup to this repository last succeeded.",
                [(labels, outcome.last_success) for labels, outcome in succeeded],
            ),
            Gauge(
                "minipc_backup_duration_seconds",
                "How long the last backup took.",
                [(labels, outcome.seconds) for labels, outcome in by_repo],
            ),
            Gauge(
                "minipc_backup_size_bytes",
                "What the last successful backup added to the repository.",
                [(labels, outcome.size) for labels, outcome in succeeded],
            ),
            Gauge(
                "minipc_backup_path_present",
                "0 for a path that should be backed up and does not exist.",
                [({"component": component, "path": path}, os.path.exists(path)) for component, path in paths],
            ),
        ],
    )
