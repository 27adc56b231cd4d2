"""Restore the database into an empty data directory, or permit a new one if no backup exists.

    restore refuse     exit 3 if a repository contains a backup; nothing is changed (a converge outside a rebuild)
    restore restore    restore the newest backup, up to the last transaction that is archived or was sent off-site
    restore restore-incomplete    the same, also if a WAL segment is missing: up to there; what was later is lost
    restore recovered MODE        after recovery: check that it went as far as there was WAL; only then archive again

With `minipc rebuild --at` (/var/lib/minipc/rebuild-at) the database returns to that moment instead: from the newest
backup before it. WAL and backups from later stay where they are.

A restore that was interrupted is resumed. If every repository answers and none contains a backup: with `refuse` exit 0,
and the caller may create an empty cluster; in a rebuild exit 3. Exit 4: a repository can't be read. An existing
database is never touched.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from minipc_machine import backup_state, schema, wal_files
from minipc_machine.backup_state import STATE, Restore, Stanza
from minipc_machine.files import write_file
from minipc_machine.locks import awake, locked
from minipc_machine.processes import run
from minipc_machine.program import EXIT_COULD_NOT_VERIFY, EXIT_PASS, EXIT_REFUSED, FailedError, say
from minipc_machine.repositories import (
    Settings,
    control_data,
    empty_auto_conf,
    pgbackrest,
    repository,
    settings,
    sql,
    system_ids,
)
from minipc_machine.wal_files import SEGMENT_BYTES, name_of, number_of, timeline_of

LOCK = backup_state.STATE / "restore.lock"
VERSION = "17"
DATA = Path(f"/var/lib/postgresql/{VERSION}/main")
ETC = Path(f"/etc/postgresql/{VERSION}/main")
CONTROL = f"/usr/lib/postgresql/{VERSION}/bin/pg_controldata"
UNIT = f"postgresql@{VERSION}-main"
# Settings of a recovery that is under way: the placed postgresql.conf includes it at its end. It is in no backup.
RECOVERY = ETC / "minipc-recovery.conf"
MARGIN_BYTES = 512 * 1024**2
A_DAY_S = 86400
SEGMENT = re.compile(r"[0-9A-F]{24}-[0-9a-f]{40}(\.\w+)?")
HISTORY = re.compile(r"[0-9A-F]{8}\.history")
# pgBackRest's message about a file that differs from what was stored.
DAMAGE = re.compile(r"checksum|decompress|CryptoError|FormatError|ChecksumError|unexpected eof|flush", re.I)
# Segments that the off-site host has received, and no repository has; until the recovery has ended.
RECEIVED = Path("/var/lib/postgresql/minipc-wal-received")
FETCH_ATTEMPTS, FETCH_PAUSE_S = 3, 5
# Exists until the database is restored and found complete. Its content says how far the last attempt got.
UNFINISHED = STATE / "restore-unfinished"
COPYING, WITHOUT_STANZA, ENDED_EARLY = "copying", "without-stanza", "ended-early"
OUTCOME = backup_state.RESTORE
# pgBackRest says "not found" as soon as one of several repositories answers (2.59, `archiveGetFind`), and PostgreSQL
# takes that, or any error, for the end of the WAL and promotes. So each repository is asked separately. If one does not
# answer, the server stops (any code above 125 does that) and systemd starts it again, until the repository answers.
RESTORE_COMMAND = (
    'pgbackrest --stanza={stanza} archive-get %f "%p" || {{ for repo in {repos}; do '
    'pgbackrest --stanza={stanza} --repo=$repo --no-archive-async archive-get %f "%p"; '
    'case $? in 0) exit 0;; 1) ;; *) echo "restore: repo$repo does not deliver its WAL: recovery waits for it" >&2; '
    "exit 126;; esac; done; {received}exit 1; }}"
)
# After the repositories. A copy that fails must not be taken for the end of the WAL, either.
FROM_RECEIVED = 'if [ -f {folder}/%f ]; then cp {folder}/%f "%p" && exit 0; exit 126; fi; '


@dataclass(frozen=True)
class Sent:
    """WAL that the off-site host has received.

    Attributes:
        segments: how many bytes of each segment there are.
        trouble: why it cannot be used; empty if it can, or if there is none.
    """

    segments: Mapping[str, int]
    trouble: str = ""


class DamagedError(FailedError):
    """A backup is damaged."""


def main(arguments: list[str]) -> int:
    """Run one of the four commands of the module's docstring."""
    # A restore whose connection was lost still runs: a second one would delete what it copies.
    with locked(LOCK, "restore", code=EXIT_REFUSED), awake("restore"):
        return decide(*(arguments[:2] or ["refuse"]))


def decide(mode: str, of: str = "refuse") -> int:
    """Restore, refuse or permit, depending on what is here and what the repositories contain.

    Args:
        of: with the mode "recovered", the mode in which the database was restored.

    Raises:
        FailedError: it was refused, or it failed; the text says why.
    """
    config = settings()
    if mode == "recovered":
        recovered(config, accept_gap=of == "restore-incomplete")
        return EXIT_PASS
    if UNFINISHED.exists() and _resume(config, mode):
        return EXIT_PASS
    if DATA.exists() and any(DATA.iterdir()):
        raise FailedError(
            f"{DATA} is not empty, and is never overwritten. Move it aside yourself; to replace a complete database: "
            "`minipc rebuild` with --replace-database",
            EXIT_REFUSED,
        )
    moment = None if mode == "refuse" else backup_state.moment()
    backups, unreadable = _newest_backups(config, moment)
    if not backups:
        if unreadable:
            why = "; ".join(unreadable.values())
            raise FailedError(
                f"no backup was found, but {', '.join(unreadable)} cannot be read ({why}): an empty database could "
                "replace one that was lost. Fix this and run again",
                EXIT_COULD_NOT_VERIFY,
            )
        if moment:
            raise FailedError(
                f"no repository contains a backup from before {_utc(moment)}: choose a later moment, or put an older "
                "copy back (docs/reference/offsite.md). Nothing was changed",
                EXIT_REFUSED,
            )
        if mode != "refuse":
            raise FailedError(
                "no repository contains a backup: there is nothing to rebuild from. If it was wiped: as root on "
                "the off-site host, /usr/local/lib/minipc/offsite-restore-copy puts a copy back "
                "(docs/reference/offsite.md, docs/reference/bucket.md, docs/howto/storage-box.md). Then run again. "
                "Nothing was changed",
                EXIT_REFUSED,
            )
        say("no repository contains a backup")
        return EXIT_PASS
    held = ", ".join(f"repo{repo} until {_utc(_stop(backup))}" for repo, backup in backups.items())
    if mode == "refuse":
        raise FailedError(
            f"there is no database here, but there is a backup of one ({held}). Restore it with `minipc rebuild`. "
            "Nothing was changed",
            EXIT_REFUSED,
        )
    _restore(config, backups, moment, accept_gap=mode == "restore-incomplete")
    return EXIT_PASS


def _resume(config: Settings, mode: str) -> bool:
    """Continue after an attempt that was interrupted; return whether nothing is left to do.

    Raises:
        FailedError: this is not a rebuild, or a server uses what was left. Nothing was changed.
    """
    left = UNFINISHED.read_text().strip() or COPYING
    if mode == "refuse":
        raise FailedError(
            f"a restore was interrupted here ({left}). `minipc rebuild` resumes it. Nothing was changed",
            EXIT_REFUSED,
        )
    # pgBackRest writes that file last: with it, this is a database, and a server may have written into it.
    whole = (DATA / "global/pg_control").exists()
    if left == WITHOUT_STANZA and whole:
        say("the files were restored by an earlier attempt")
        _make_stanza(config)
        return True
    if left == ENDED_EARLY:
        run(["systemctl", "stop", UNIT], timeout_s=600)
    if (DATA / "postmaster.pid").exists():
        raise FailedError(
            f"a restore was interrupted, but a server uses {DATA} (postmaster.pid exists). Check it, stop it with "
            f"`systemctl stop {UNIT}`, and run again. Nothing was changed",
            EXIT_REFUSED,
        )
    say(f"the last restore was interrupted ({left}); starting again")
    if whole:
        aside = DATA.with_name(f"{DATA.name}.aside-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        DATA.rename(aside)
        say(f"its files are in {aside}; remove them when they are no longer needed")
    elif DATA.exists():
        run(["find", str(DATA), "-mindepth", "1", "-delete"])
    return False


def recovered(config: Settings, *, accept_gap: bool) -> None:
    """Check that recovery ended where it should, then let the server archive.

    Until then the server stores what it would archive: a timeline that leaves the old one too early must not get into
    the repositories, where the next restore would follow it.

    Raises:
        FailedError: recovery ended in an earlier segment than the last one that was available.
    """
    outcome = schema.load(Restore, OUTCOME, ignore_unknown=True) if OUTCOME.exists() else None
    end, until = _end_of_recovery(), outcome.wal_until if outcome else None
    accept_gap = accept_gap or bool(outcome and outcome.gap_accepted)
    if until and end and (end - 1) // SEGMENT_BYTES < number_of(until) and not accept_gap:
        write_file(UNFINISHED, ENDED_EARLY)
        raise FailedError(
            f"recovery ended at {_lsn(end)}, before WAL segment {until}, which was in a "
            "repository: the writes in between are missing. Nothing was archived since. Run `minipc rebuild` "
            "to restore again; to accept the loss, add --accept-missing-wal"
        )
    if outcome and outcome.received:
        _archive_received(config, outcome.received, end)
    # The timeline is read when the server starts. No client uses the database yet.
    _recover_with(restore_command=_restore_command(config))
    run(["systemctl", "restart", UNIT], timeout_s=600)
    shutil.rmtree(RECEIVED, ignore_errors=True)
    # Last: as long as this is set, a converge comes back here.
    RECOVERY.unlink(missing_ok=True)
    sql("SELECT pg_reload_conf()", "postgres", config.port)


def _archive_received(config: Settings, received: Mapping[str, int], end: int | None) -> None:
    """Archive the whole segments that the off-site host had received: PostgreSQL takes what it restores for archived.

    Args:
        received: segment -> how many bytes of it there were.
        end: position at which recovery ended; None if it is not known.

    Raises:
        FailedError: a repository does not take one. The same call goes on there.
    """
    last = max(received)
    until = number_of(last) * SEGMENT_BYTES + received[last]
    say(f"recovery went to {_lsn(end or until)}; the off-site host had received WAL until {_lsn(until)}")
    for segment, length in sorted(received.items()):
        path = RECEIVED / segment
        # It is gone if an earlier call has come this far.
        if length == SEGMENT_BYTES and (number_of(segment) + 1) * SEGMENT_BYTES <= (end or until) and path.exists():
            pgbackrest(f"--stanza={config.stanza}", "--no-archive-async", "archive-push", str(path))


def _lsn(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def _end_of_recovery() -> int | None:
    """Return the position at which the server left the timeline that it followed; None if it never did."""
    histories = sorted((DATA / "pg_wal").glob("*.history"))
    return _lineage(histories[-1].read_text(), 0)[-1][1] if histories else None


def _newest_backups(config: Settings, moment: float | None) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
    """Return the newest backup of each repository that has one, and the repositories that can't be read with why.

    Args:
        moment: consider only backups that had ended by then, epoch seconds; None: all.
    """
    backups, unreadable = {}, {}
    for repo in config.repos:
        try:
            found = [
                each
                for each in repository(config.stanza, repo).get("backup", [])
                if moment is None or _stop(each) <= moment
            ]
        except FailedError as error:
            say(f"repo{repo}: {error}")
            unreadable[f"repo{repo}"] = str(error)
        else:
            if found:
                backups[repo] = found[-1]
    return backups, unreadable


def _stop(backup: dict[str, Any]) -> float:
    return float(backup["timestamp"]["stop"])


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def _restore(config: Settings, backups: dict[int, dict[str, Any]], moment: float | None, *, accept_gap: bool) -> None:
    """Restore from the first repository whose backup is not damaged.

    The local one is first, because it is faster, unless its backup is much older. WAL comes from whichever repository
    has the segment.
    """
    newest = max(map(_stop, backups.values()))
    damaged = ""
    for repo in sorted(backups, key=lambda repo: (newest - _stop(backups[repo]) > A_DAY_S, repo)):
        try:
            _restore_from(config, repo, backups[repo], moment, damaged, accept_gap=accept_gap)
            return
        except DamagedError as error:
            damaged = "; ".join(filter(None, [damaged, str(error)]))
            say(f"{error}; trying another repository")
            run(["find", str(DATA), "-mindepth", "1", "-delete"])
    raise FailedError(
        f"{damaged}. Restore an earlier copy (docs/reference/offsite.md), or an earlier backup: `minipc rebuild --at`"
    )


def _restore_from(
    config: Settings, repo: int, backup: dict[str, Any], moment: float | None, damaged: str, *, accept_gap: bool
) -> None:
    """Restore a backup, and leave the settings for its recovery.

    Args:
        damaged: what was wrong with backups that were tried before.

    Raises:
        DamagedError: this backup is damaged; the files are incomplete.
    """
    size = backup["info"]["size"]
    DATA.parent.mkdir(parents=True, exist_ok=True)
    # A return to a moment ends before the last archived segment.
    sent = used = Sent({}) if moment else _received(config, repo)
    free = os.statvfs(DATA.parent)
    if free.f_bavail * free.f_frsize < size + MARGIN_BYTES:
        raise FailedError(
            f"the backup needs {(size + MARGIN_BYTES) // 1024**2} MB, {DATA.parent} has "
            f"{free.f_bavail * free.f_frsize // 1024**2} MB free: give the machine a larger disk",
            EXIT_REFUSED,
        )
    until: str | None = None
    if moment:
        timeline = _timeline_at(config, backup["archive"], moment)
    else:
        until, timeline, used = _wal_until(config, backup["archive"], sent.segments, accept_gap=accept_gap)
        for path in RECEIVED.glob("*"):
            if path.name not in used.segments:
                path.unlink()
    account = pwd.getpwnam("postgres")
    for directory in (DATA.parent, DATA):
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chown(directory, account.pw_uid, account.pw_gid)
    write_file(UNFINISHED, COPYING)
    started = time.time()
    say(f"restoring {size // 1024**2} MB from repo{repo}")
    label = backup["label"]
    _copy(config.stanza, repo, label)
    seconds = time.time() - started
    _write_cluster_configuration(account)
    empty_auto_conf(DATA)
    # An empty command archives nothing and loses nothing. Without hot standby, recovery does not demand max_connections
    # and the like to be as high as on the lost machine. `recovered` removes all of these settings.
    others = {"recovery_target_timeline": timeline, "archive_command": "", "hot_standby": "off"}
    if moment:
        target = datetime.fromtimestamp(moment, UTC)
        others |= {"recovery_target_time": f"{target:%Y-%m-%d %H:%M:%S.%f}+00", "recovery_target_action": "promote"}
    _recover_with(restore_command=_restore_command(config, used.segments), **others)
    outcome = Restore(repo, label, size, round(seconds, 3), started, until, timeline, accept_gap, moment, damaged)
    outcome = replace(outcome, received=dict(used.segments), not_received=sent.trouble or used.trouble)
    write_file(OUTCOME, schema.dump(outcome))
    # From here on it is a database.
    write_file(UNFINISHED, WITHOUT_STANZA)
    say(f"restored {label} from repo{repo} in {seconds:.1f} s")
    _make_stanza(config)


def _restore_command(config: Settings, received: Collection[str] = ()) -> str:
    more = FROM_RECEIVED.format(folder=RECEIVED) if received else ""
    return RESTORE_COMMAND.format(stanza=config.stanza, repos=" ".join(map(str, config.repos)), received=more)


def _received(config: Settings, repo: int) -> Sent:
    """Fetch the WAL that the off-site host has received.

    If that fails, it is reported, and the restore goes on without: it ends with the last archived segment.

    Args:
        repo: the repository with the backup: of its database must the WAL be.
    """
    shutil.rmtree(RECEIVED, ignore_errors=True)
    source = wal_files.server()
    if source is None:
        return Sent({})
    why = ""
    for attempt in range(FETCH_ATTEMPTS):
        if attempt:
            time.sleep(FETCH_PAUSE_S)
        try:
            keys = wal_files.keys(system_ids(repository(config.stanza, repo))[-1])
            found = wal_files.fetch(source, keys, RECEIVED)
        except FailedError as error:
            why = str(error)
        else:
            if not found:
                say("the off-site host has received no WAL besides the archived segments")
            return Sent(found)
    return _unusable(f"{why}. The restore ends with the last archived segment")


def _unusable(why: str) -> Sent:
    trouble = f"WAL that was sent off-site is NOT USED: {why}"
    say(trouble)
    return Sent({}, trouble)


def _recover_with(**values: object) -> None:
    """Write the settings of the recovery where only the machine's own accounts can write."""
    lines = [f"{name} = '{value}'\n" for name, value in values.items()]
    write_file(
        RECOVERY, "# Written by /usr/local/lib/minipc/restore; removed when the recovery has ended.\n" + "".join(lines)
    )


def _make_stanza(config: Settings) -> None:
    """Create the stanza in each repository before the restored server asks for WAL or archives it."""
    pgbackrest(f"--stanza={config.stanza}", "--no-online", "stanza-create")
    identifier = control_data(str(DATA), CONTROL)["Database system identifier"]
    write_file(backup_state.STANZA, schema.dump(Stanza(identifier, config.repos, config.storage)))
    UNFINISHED.unlink()


def _copy(stanza: str, repo: int, label: str) -> None:
    """Restore the files of a backup. Raises DamagedError if it is damaged."""
    try:
        # `current`: pgBackRest looks for a history file in this repository only. `_recover_with` sets the timeline.
        pgbackrest(f"--stanza={stanza}", f"--repo={repo}", f"--set={label}", "--target-timeline=current", "restore")
    except FailedError as error:
        if not DAMAGE.search(str(error)):
            raise
        raise DamagedError(f"the backup {label} in repo{repo} is damaged: {error}") from None


# --- available WAL --------------------------------------------------------------------------------------------------

Lineage = list[tuple[int, int]]
"""Timelines in order, each with the position at which it left the previous one."""


def _wal_until(
    config: Settings, needed: dict[str, str], received: Mapping[str, int], *, accept_gap: bool
) -> tuple[str, int, Sent]:
    """Return the newest archived segment that recovery will reach, the timeline to follow, and what it needs besides.

    Args:
        needed: the first and last segment of the backup.
        received: segments that the off-site host has received, and how many bytes of each.

    Raises:
        FailedError: an earlier segment is missing, or there is WAL that recovery will not reach. PostgreSQL would take
            the gap for the end, or ignore the rest, and silently drop what was written there.
    """
    start = number_of(needed["start"])
    segments, histories = _archive(config)
    line = _line(needed, histories)
    if not accept_gap:
        _refuse_ignored_wal(line, segments, histories)
    archived = {timeline_of(name) for name in segments}
    written = [each for each in line if each[0] in archived]
    available = {}
    for name in segments:
        number = number_of(name)
        if number >= start and timeline_of(name) == _owner(written, number):
            available[number] = name
    if not available:
        raise FailedError(f"WAL segment {needed['start']}, the first that the backup needs, is in no repository")
    newest = max(available)
    # Two segments are archived at the same time: the second may have arrived, and the first not.
    used = {
        name: length
        for name, length in received.items()
        if start <= number_of(name) < newest
        and number_of(name) not in available
        and timeline_of(name) == _owner(written, number_of(name))
        and length == SEGMENT_BYTES
    }
    available |= {number_of(name): name for name in used}
    missing = [number for number in range(start, newest) if number not in available]
    if missing and not accept_gap:
        raise FailedError(
            f"WAL segment {name_of(_owner(written, missing[0]), missing[0])} is missing in every repository "
            f"({len(missing)} of {newest - start + 1}), and there is WAL up to {available[newest]}: "
            "everything written after the gap would be lost. Restore an earlier copy (docs/reference/offsite.md), "
            "or accept the loss: `minipc rebuild` with --accept-missing-wal. Nothing was changed"
        )
    if missing:
        return available.get(missing[0] - 1, available[newest]), line[-1][0], Sent(used)
    beyond = _beyond(line[-1], available[newest], received)
    return available[newest], line[-1][0], Sent({**used, **beyond.segments}, beyond.trouble)


def _beyond(last: tuple[int, int], archived: str, received: Mapping[str, int]) -> Sent:
    """Return the received segments that continue the archive without a gap, the last of them unfinished.

    Args:
        last: the timeline that recovery follows, and where it begins.
        archived: the newest archived segment.
    """
    timeline, begin = last
    after = number_of(archived) + 1
    # On a new timeline of which nothing is archived, its first segment replaces that of the old one.
    first = number = after if timeline_of(archived) == timeline else min(begin // SEGMENT_BYTES, after)
    found = {}
    while (name := name_of(timeline, number)) in received:
        found[name] = received[name]
        if received[name] < SEGMENT_BYTES:
            break
        number += 1
    if found:
        end = number_of(max(found)) * SEGMENT_BYTES + found[max(found)]
        say(f"{archived} is the last archived segment; WAL that was sent off-site goes on until {_lsn(end)}")
    elif later := [name for name in received if timeline_of(name) == timeline and number_of(name) > first]:
        return _unusable(f"it begins with {min(later)}, and the archive ends with {archived}. The restore ends there")
    return Sent(found)


def _timeline_at(config: Settings, needed: dict[str, str], moment: float) -> int:
    """Return the timeline that leads to a moment: the newest that continues the backup.

    After an earlier return to a moment there are two that do; then the backup's own, which was the current one then.

    Args:
        needed: the first and last segment of the backup.

    Raises:
        FailedError: nothing that was written so late is in a repository.
    """
    segments, histories = _archive(config)
    newest = max(segments.values(), default=0.0)
    if newest < moment:
        raise FailedError(
            f"the newest WAL is from {_utc(newest)}, before {_utc(moment)}: choose an earlier moment, or restore "
            "everything there is: `minipc rebuild` without --at. Nothing was changed",
            EXIT_REFUSED,
        )
    line = _line(needed, histories)
    try:
        _refuse_ignored_wal(line, segments, histories)
    except FailedError:
        return timeline_of(needed["start"])
    return line[-1][0]


def _owner(line: Lineage, number: int) -> int:
    """Return the timeline on which recovery reads a segment; 0 for none."""
    return max((timeline for timeline, begin in line if begin // SEGMENT_BYTES <= number), default=0)


def _line(needed: dict[str, str], histories: dict[int, tuple[int, str]]) -> Lineage:
    """Return the newest timeline that continues the backup, and those that lead to it, from the backup's own on."""
    own = timeline_of(needed["start"])
    for timeline in sorted(histories, reverse=True):
        if timeline <= own:
            break
        repo, path = histories[timeline]
        line = _lineage(pgbackrest(f"--repo={repo}", "repo-get", path, timeout_s=120), timeline)
        rest = [each for each in line if each[0] >= own]
        # A timeline that left before the backup ended does not continue it.
        if len(rest) > 1 and rest[0][0] == own and rest[1][1] // SEGMENT_BYTES >= number_of(needed["stop"]):
            return rest
    return [(own, 0)]


def _lineage(history: str, timeline: int) -> Lineage:
    """Parse a history file: one line for each ancestor, with the position at which the next timeline left it."""
    fields = [line.split("\t") for line in history.splitlines() if line.count("\t") >= 2]
    ends = [tuple(int(part, 16) for part in field[1].split("/")) for field in fields]
    begins = [0, *((high << 32) + low for high, low in ends)]
    return list(zip([*(int(field[0]) for field in fields), timeline], begins, strict=True))


def _refuse_ignored_wal(line: Lineage, segments: Collection[str], histories: dict[int, tuple[int, str]]) -> None:
    """Raise FailedError if recovery does not reach all WAL: a person has to decide which timeline is right."""
    last = line[-1][0]
    newer = {each for each in {*histories, *map(timeline_of, segments)} if each > last}
    beyond = [
        name
        for name in segments
        for (timeline, _), (_, left) in pairwise(line)
        if timeline_of(name) == timeline and number_of(name) > (left - 1) // SEGMENT_BYTES
    ]
    if newer:
        what = f"timeline {max(newer)} does not continue the newest backup, or its history is in no repository"
    elif beyond:
        what = f"timeline {last} was begun before the previous one ended, which continues until {max(beyond)}"
    else:
        return
    raise FailedError(
        f"{what}: a restore follows timeline {last} and loses what was written on the other one. If that is "
        "intended: `minipc rebuild` with --accept-missing-wal. To restore the other one, do it manually "
        "(docs/howto/restore-drill.md). Nothing was changed"
    )


def _archive(config: Settings) -> tuple[dict[str, float], dict[int, tuple[int, str]]]:
    """Return the WAL segments of all repositories with the time when each arrived, epoch seconds, and repository and
    path of each timeline's history file.
    """
    segments: dict[str, float] = {}
    histories: dict[int, tuple[int, str]] = {}
    for repo in config.repos:
        folder = f"archive/{config.stanza}"
        for path, found in _listed(repo, folder).items():
            name = Path(path).name
            if SEGMENT.fullmatch(name):
                segments[name[:24]] = max(segments.get(name[:24], 0), found.get("time", 0))
            elif HISTORY.fullmatch(name):
                histories[int(name[:8], 16)] = (repo, f"{folder}/{path}")
    return segments, histories


def _listed(repo: int, folder: str) -> dict[str, dict[str, Any]]:
    """Return everything below a folder of a repository; nothing if it can't be read, which is reported."""
    try:
        listed = pgbackrest(f"--repo={repo}", "--recurse", "--output=json", "repo-ls", folder, timeout_s=600)
    except FailedError as error:
        say(f"repo{repo}: its WAL cannot be listed: {error}")
        return {}
    entries: dict[str, dict[str, Any]] = json.loads(listed or "{}")
    return entries


def _write_cluster_configuration(account: pwd.struct_passwd) -> None:
    """Create the files that pg_ctlcluster needs and the converge does not place; a backup does not contain it."""
    ETC.mkdir(parents=True, exist_ok=True)
    files = {"start.conf": "auto\n", "pg_ctl.conf": "pg_ctl_options = ''\n", "environment": "", "pg_ident.conf": ""}
    for name, content in files.items():
        path = ETC / name
        if not path.exists():
            path.write_text(content)
            path.chmod(0o640 if name == "pg_ident.conf" else 0o644)
    for path in (ETC.parent, ETC, *ETC.iterdir()):
        os.chown(path, account.pw_uid, account.pw_gid)
