#!/usr/bin/python3
# Written by minipc (templates/repositories/restore.py).
"""Decides what an empty data directory gets: the database from the repositories, or leave to make a new one.

    restore refuse     a repository holds a backup: exit 3, nothing is done (a converge outside a rebuild)
    restore restore    a repository holds a backup: it is restored, up to the last archived transaction
    restore restore-incomplete    the same, also when a WAL segment is missing: up to there, and what was later is lost
    restore recovered MODE        after recovery: did it go as far as there was WAL? Only then the server archives

What an interrupted restore has left is taken up where it stopped. No backup anywhere, and every repository said so:
with `refuse` exit 0 and nothing is done, the caller may make an empty cluster; in a rebuild exit 3. A repository that
can't be asked: exit 4. An existing database is never touched.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import (
    EXIT_COULD_NOT_VERIFY,
    EXIT_REFUSED,
    STATE,
    FailedError,
    control_data,
    ended,
    locked,
    pgbackrest,
    read_json,
    repository,
    run,
    say,
    settings,
    sql,
    write_file,
)

VERSION = "17"
DATA = Path(f"/var/lib/postgresql/{VERSION}/main")
ETC = Path(f"/etc/postgresql/{VERSION}/main")
CONTROL = f"/usr/lib/postgresql/{VERSION}/bin/pg_controldata"
UNIT = f"postgresql@{VERSION}-main"
MARGIN_BYTES = 512 * 1024**2
SEGMENT_BYTES = 16 * 1024**2
SEGMENT = re.compile(r"[0-9A-F]{24}-[0-9a-f]{40}(\.\w+)?")
HISTORY = re.compile(r"[0-9A-F]{8}\.history")
# What pgBackRest says of a file that isn't what was stored.
DAMAGE = re.compile(r"checksum|decompress|CryptoError|FormatError|ChecksumError|unexpected eof|flush", re.I)
# There until the database is restored and found whole. It says what the last attempt has left.
UNFINISHED = STATE / "restore-unfinished"
COPYING, WITHOUT_STANZA, ENDED_EARLY = "copying", "without-stanza", "ended-early"
OUTCOME = STATE / "restore.json"
# pgBackRest says "not found" as soon as one of several repositories answers (2.59, `archiveGetFind`), and PostgreSQL
# takes that, or any error, for the end of the WAL and promotes. So each one is asked by itself; one that can't be asked
# stops the server (any code above 125 does), and systemd starts it again, until the repository answers.
RESTORE_COMMAND = (
    'pgbackrest --stanza={stanza} archive-get %f "%p" || {{ for repo in {repos}; do '
    'pgbackrest --stanza={stanza} --repo=$repo --no-archive-async archive-get %f "%p"; '
    'case $? in 0) exit 0;; 1) ;; *) echo "restore: repo$repo does not give its WAL: recovery waits for it" >&2; '
    "exit 126;; esac; done; exit 1; }}"
)


def main(mode: str, of: str = "refuse") -> int:
    config = settings()
    if mode == "recovered":
        recovered(config, accept_gap=of == "restore-incomplete")
        return 0
    if UNFINISHED.exists() and _take_up(config, mode):
        return 0
    if DATA.exists() and any(DATA.iterdir()):
        raise FailedError(
            f"{DATA} is not empty; it is never overwritten. Move it aside by hand; a whole database: `minipc rebuild` "
            "with --replace-database",
            EXIT_REFUSED,
        )
    backups, silent = _look(config)
    why = "; ".join(silent.values())
    if not backups:
        if silent:
            raise FailedError(
                f"no backup found, but {', '.join(silent)} can't be asked ({why}): an empty database could take the "
                "place of a lost one. Mend that and run again",
                EXIT_COULD_NOT_VERIFY,
            )
        if mode != "refuse":
            raise FailedError(
                "no repository holds a backup: there is nothing to rebuild from. Was it wiped? As root on the off-site "
                "machine, /usr/local/lib/minipc/offsite-restore-copy puts a copy back (docs/reference/offsite.md). Run "
                "again then. Nothing was changed",
                EXIT_REFUSED,
            )
        say("no repository holds a backup")
        return 0
    held = ", ".join(f"repo{repo} until {_moment(backup)}" for repo, backup in backups.items())
    if mode == "refuse":
        raise FailedError(
            f"there is no database here, but there is a backup of one ({held}). Bring it back with `minipc rebuild`. "
            "Nothing was changed",
            EXIT_REFUSED,
        )
    _restore(config, backups, accept_gap=mode == "restore-incomplete")
    return 0


def _take_up(config: dict[str, Any], mode: str) -> bool:
    """Goes on after an attempt that did not get to its end; whether nothing is left to do.

    Raises:
        FailedError: this is no rebuild, or a server uses what was left. Nothing was changed.
    """
    left = UNFINISHED.read_text().strip() or COPYING
    if mode == "refuse":
        raise FailedError(
            f"a restore has not come to its end here ({left}). `minipc rebuild` goes on with it. Nothing was changed",
            EXIT_REFUSED,
        )
    # pgBackRest writes that file last: with it, this is a database, and somebody may have written into it.
    whole = (DATA / "global/pg_control").exists()
    if left == WITHOUT_STANZA and whole:
        say("the files were restored before")
        _make_stanza(config)
        return True
    if left == ENDED_EARLY:
        run(["systemctl", "stop", UNIT], timeout_s=600)
    if (DATA / "postmaster.pid").exists():
        raise FailedError(
            f"a restore was interrupted, but a server uses {DATA} (postmaster.pid is there). Look at it, stop it, and "
            f"run again: `systemctl stop {UNIT}`. Nothing was changed",
            EXIT_REFUSED,
        )
    say(f"the last restore did not come to its end ({left}); it begins anew")
    if whole:
        aside = DATA.with_name(f"{DATA.name}.aside-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        DATA.rename(aside)
        say(f"what it has left is in {aside}; remove it when it is no longer needed")
    elif DATA.exists():
        run(["find", str(DATA), "-mindepth", "1", "-delete"])
    return False


def recovered(config: dict[str, Any], *, accept_gap: bool) -> None:
    """Recovery has ended: where it should, else that is told. Only then archiving begins.

    Until here the server keeps what it would archive: a timeline that leaves the old one too early must not get into
    the repositories, where the next restore would follow it.

    Raises:
        FailedError: it ended in an earlier segment than the last one that there was.
    """
    outcome, end = read_json(OUTCOME), _end_of_recovery()
    until, accept_gap = outcome.get("wal_until"), accept_gap or bool(outcome.get("gap_accepted"))
    if until and end and (end - 1) // SEGMENT_BYTES < _number(until) and not accept_gap:
        write_file(UNFINISHED, ENDED_EARLY)
        raise FailedError(
            f"recovery ended at {end >> 32:X}/{end & 0xFFFFFFFF:X}, before WAL segment {until}, which was in a "
            "repository: what was written in between is missing. Nothing of this was archived. Run `minipc rebuild` "
            "again: it restores anew; or accept the loss: with --accept-missing-wal"
        )
    _reset(config, "archive_command", "recovery_target_timeline")
    # The timeline is read when the server starts. Nobody works with it yet.
    run(["systemctl", "restart", UNIT], timeout_s=600)
    # At last: for as long as it is set, a converge comes back here.
    _reset(config, "restore_command")


def _reset(config: dict[str, Any], *names: str) -> None:
    statements = [*(f"ALTER SYSTEM RESET {name};" for name in names), "SELECT pg_reload_conf();"]
    sql("\n".join(statements), "postgres", config["port"])


def _end_of_recovery() -> int | None:
    """Where the server left the timeline that it followed; None when it never did."""
    histories = sorted((DATA / "pg_wal").glob("*.history"))
    return _lineage(histories[-1].read_text(), 0)[-1][1] if histories else None


def _look(config: dict[str, Any]) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
    """The newest backup in each repository that has one; the repositories that can't be read, and why."""
    backups, silent = {}, {}
    for repo in config["repos"]:
        try:
            found = repository(config["stanza"], repo).get("backup", [])
        except FailedError as error:
            say(f"repo{repo}: {error}")
            silent[f"repo{repo}"] = str(error)
        else:
            if found:
                backups[repo] = found[-1]
    return backups, silent


def _moment(backup: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(backup["timestamp"]["stop"]))


def _restore(config: dict[str, Any], backups: dict[int, dict[str, Any]], *, accept_gap: bool) -> None:
    # The local repository first: it is faster. WAL comes from whichever repository has the segment.
    repo = min(backups)
    size = backups[repo]["info"]["size"]
    DATA.parent.mkdir(parents=True, exist_ok=True)
    free = os.statvfs(DATA.parent)
    if free.f_bavail * free.f_frsize < size + MARGIN_BYTES:
        raise FailedError(
            f"the backup needs {(size + MARGIN_BYTES) // 1024**2} MB, {DATA.parent} has "
            f"{free.f_bavail * free.f_frsize // 1024**2} MB free: give the machine a larger disk",
            EXIT_REFUSED,
        )
    until, timeline = _wal_until(config, backups[repo]["archive"], accept_gap=accept_gap)
    account = pwd.getpwnam("postgres")
    for directory in (DATA.parent, DATA):
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chown(directory, account.pw_uid, account.pw_gid)
    write_file(UNFINISHED, COPYING)
    started = time.time()
    say(f"restoring {size // 1024**2} MB from repo{repo}")
    label = backups[repo]["label"]
    _copy(config["stanza"], repo, label)
    seconds = time.time() - started
    _write_cluster_configuration(account)
    _hold(config, timeline)
    outcome = {"repo": repo, "label": label, "bytes": size, "seconds": round(seconds, 3), "at": started}
    outcome |= {"wal_until": until, "timeline": timeline, "gap_accepted": accept_gap}
    write_file(OUTCOME, json.dumps(outcome) + "\n")
    # From here on it is a database.
    write_file(UNFINISHED, WITHOUT_STANZA)
    say(f"restored {label} from repo{repo} in {seconds:.1f} s")
    _make_stanza(config)


def _hold(config: dict[str, Any], timeline: int) -> None:
    """Settings of the recovery, after those of pgBackRest: the last one counts. `recovered` takes them back."""
    command = RESTORE_COMMAND.format(stanza=config["stanza"], repos=" ".join(map(str, config["repos"])))
    # An empty command archives nothing and loses nothing.
    held = {"restore_command": command, "recovery_target_timeline": timeline, "archive_command": ""}
    with open(DATA / "postgresql.auto.conf", "a") as file:
        file.write("".join(f"{name} = '{value}'\n" for name, value in held.items()))


def _make_stanza(config: dict[str, Any]) -> None:
    """Each repository knows the stanza before the restored server asks it for WAL, or pushes some."""
    pgbackrest(f"--stanza={config['stanza']}", "--no-online", "stanza-create")
    identifier = control_data(str(DATA), CONTROL)["Database system identifier"]
    write_file(STATE / "stanza.json", json.dumps({"system_id": identifier, "repos": config["repos"]}) + "\n")
    UNFINISHED.unlink()


def _copy(stanza: str, repo: int, label: str) -> None:
    """The files of the backup. Raises FailedError; a damaged one is called that."""
    try:
        # `current`: pgBackRest would look for a history in this repository only. `_hold` names the timeline.
        pgbackrest(f"--stanza={stanza}", f"--repo={repo}", f"--set={label}", "--target-timeline=current", "restore")
    except FailedError as error:
        if not DAMAGE.search(str(error)):
            raise
        raise FailedError(
            f"the backup {label} in repo{repo} is damaged. Put an earlier copy back (docs/reference/offsite.md), or "
            f"restore an earlier backup by hand (docs/howto/restore-drill.md): {error}"
        ) from None


# --- which WAL there is ---------------------------------------------------------------------------------------------

Line = list[tuple[int, int]]
"""Timelines in their order, each with the position at which it left the one before."""


def _wal_until(config: dict[str, Any], needed: dict[str, str], *, accept_gap: bool) -> tuple[str, int]:
    """The newest WAL segment that recovery will come to, and the timeline to follow.

    Args:
        needed: the first and last segment of the backup.

    Raises:
        FailedError: one before it is missing, or there is WAL that recovery will not come to. PostgreSQL would take the
            gap for the end, or leave the rest, and silently drop what was written there.
    """
    start = _number(needed["start"])
    segments, histories = _archive(config)
    line = _line(config, needed, histories)
    if not accept_gap:
        _refuse_what_is_left_out(line, segments, histories)
    having = {_timeline(name) for name in segments}
    written = [each for each in line if each[0] in having]
    there = {}
    for name in segments:
        number = _number(name)
        if number >= start and _timeline(name) == _owner(written, number):
            there[number] = name
    if not there:
        raise FailedError(f"WAL segment {needed['start']}, with which the backup begins, is in no repository")
    newest = max(there)
    missing = [number for number in range(start, newest) if number not in there]
    if missing and not accept_gap:
        raise FailedError(
            f"WAL segment {_name(_owner(written, missing[0]), missing[0])} is missing in every repository "
            f"({len(missing)} of {newest - start + 1}), and there is WAL up to {there[newest]}: all that "
            "was written after the gap would be lost. Put an earlier copy back (docs/reference/offsite.md), or accept "
            "the loss: `minipc rebuild` with --accept-missing-wal. Nothing was changed"
        )
    return there.get(missing[0] - 1, there[newest]) if missing else there[newest], line[-1][0]


def _owner(line: Line, number: int) -> int:
    """The timeline on which recovery reads that segment; 0 for none."""
    return max((timeline for timeline, begin in line if begin // SEGMENT_BYTES <= number), default=0)


def _line(config: dict[str, Any], needed: dict[str, str], histories: dict[int, tuple[int, str]]) -> Line:
    """The newest timeline that continues the backup, and those that lead to it, from the backup's on."""
    own = _timeline(needed["start"])
    for timeline in sorted(histories, reverse=True):
        if timeline <= own:
            break
        repo, path = histories[timeline]
        line = _lineage(pgbackrest(f"--repo={repo}", "repo-get", path, timeout_s=120), timeline)
        rest = [each for each in line if each[0] >= own]
        # One that left before the backup ended is not its future.
        if len(rest) > 1 and rest[0][0] == own and rest[1][1] // SEGMENT_BYTES >= _number(needed["stop"]):
            return rest
    return [(own, 0)]


def _lineage(history: str, timeline: int) -> Line:
    """What a history file says: a line for each ancestor, with the position at which the next one left it."""
    fields = [line.split("\t") for line in history.splitlines() if line.count("\t") >= 2]
    ends = [tuple(int(part, 16) for part in field[1].split("/")) for field in fields]
    begins = [0, *((high << 32) + low for high, low in ends)]
    return list(zip([*(int(field[0]) for field in fields), timeline], begins, strict=True))


def _refuse_what_is_left_out(line: Line, segments: set[str], histories: dict[int, tuple[int, str]]) -> None:
    """Raises FailedError when there is WAL that recovery does not come to: a person has to say which is the truth."""
    last = line[-1][0]
    newer = {each for each in {*histories, *map(_timeline, segments)} if each > last}
    beyond = [
        name
        for name in segments
        for (timeline, _), (_, left) in pairwise(line)
        if _timeline(name) == timeline and _number(name) > (left - 1) // SEGMENT_BYTES
    ]
    if newer:
        what = f"timeline {max(newer)} does not continue the newest backup, or its history is in no repository"
    elif beyond:
        what = f"timeline {last} was begun before the one before it ended, which goes on until {max(beyond)}"
    else:
        return
    raise FailedError(
        f"{what}: a restore follows timeline {last}, and what was written on the other is not in it. If that is meant: "
        "`minipc rebuild` with --accept-missing-wal; the other one by hand (docs/howto/restore-drill.md). Nothing was "
        "changed"
    )


def _archive(config: dict[str, Any]) -> tuple[set[str], dict[int, tuple[int, str]]]:
    """The WAL segments of all repositories, and where the history of each timeline is: repository and path."""
    segments: set[str] = set()
    histories: dict[int, tuple[int, str]] = {}
    for repo in config["repos"]:
        folder = f"archive/{config['stanza']}"
        for path in _listed(repo, folder):
            name = Path(path).name
            if SEGMENT.fullmatch(name):
                segments.add(name[:24])
            elif HISTORY.fullmatch(name):
                histories[int(name[:8], 16)] = (repo, f"{folder}/{path}")
    return segments, histories


def _listed(repo: int, folder: str) -> list[str]:
    """Everything below a folder of a repository; nothing when it can't be read: `_look` has told that."""
    try:
        listed = pgbackrest(f"--repo={repo}", "--recurse", "--output=json", "repo-ls", folder, timeout_s=600)
    except FailedError as error:
        say(f"repo{repo}: its WAL can't be listed: {error}")
        return []
    return list(json.loads(listed or "{}"))


def _timeline(segment: str) -> int:
    return int(segment[:8], 16)


def _number(segment: str) -> int:
    """Its place in the order of segments, whatever the timeline: 256 of 16 MB each make a "log"."""
    return (int(segment[8:16], 16) << 8) + int(segment[16:24], 16)


def _name(timeline: int, number: int) -> str:
    return f"{timeline:08X}{number >> 8:08X}{number & 0xFF:08X}"


def _write_cluster_configuration(account: pwd.struct_passwd) -> None:
    """What Debian's pg_ctlcluster wants beside the files that the converge places; a backup does not hold it."""
    ETC.mkdir(parents=True, exist_ok=True)
    files = {"start.conf": "auto\n", "pg_ctl.conf": "pg_ctl_options = ''\n", "environment": "", "pg_ident.conf": ""}
    for name, content in files.items():
        path = ETC / name
        if not path.exists():
            path.write_text(content)
            path.chmod(0o640 if name == "pg_ident.conf" else 0o644)
    for path in (ETC.parent, ETC, *ETC.iterdir()):
        os.chown(path, account.pw_uid, account.pw_gid)


if __name__ == "__main__":
    try:
        # One that a lost connection has left behind goes on: a second one would delete what it copies.
        with locked("restore", 0, EXIT_REFUSED):
            sys.exit(main(*(sys.argv[1:3] or ["refuse"])))
    except FailedError as error:
        sys.exit(ended(error))
