#!/usr/bin/python3
# Written by minipc (templates/repositories/restore.py).
"""Decides what an empty data directory gets: the database from the repositories, or leave to make a new one.

    restore refuse     a repository holds a backup: exit 3, nothing is done (a converge outside a rebuild)
    restore restore    a repository holds a backup: it is restored, up to the last archived transaction
    restore restore-incomplete    the same, also when a WAL segment is missing: up to there, and what was later is lost

An interrupted restore begins anew. No backup anywhere, and every repository said so: exit 0 and nothing is done; the
caller may make an empty cluster.
A repository that can't be asked: exit 4. An existing data directory is never touched.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
import time
from pathlib import Path
from typing import Any

from common import (
    EXIT_COULD_NOT_VERIFY,
    EXIT_REFUSED,
    STATE,
    FailedError,
    control_data,
    ended,
    pgbackrest,
    repository,
    run,
    say,
    settings,
    write_file,
)

VERSION = "17"
DATA = Path(f"/var/lib/postgresql/{VERSION}/main")
ETC = Path(f"/etc/postgresql/{VERSION}/main")
CONTROL = f"/usr/lib/postgresql/{VERSION}/bin/pg_controldata"
MARGIN_BYTES = 512 * 1024**2
SEGMENT = re.compile(r"[0-9A-F]{24}-[0-9a-f]{40}(\.\w+)?")
# What pgBackRest says of a file that isn't what was stored.
DAMAGE = re.compile(r"checksum|decompress|CryptoError|FormatError|ChecksumError|unexpected eof|flush", re.I)
# There while a restore is under way: what it left half-done is no database, and the next run begins anew.
UNFINISHED = STATE / "restore-unfinished"


def main(mode: str) -> int:
    config = settings()
    if UNFINISHED.exists():
        say("the last restore was interrupted; it begins anew")
        _empty()
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
    until = _wal_until(config, backups[repo]["archive"]["start"], accept_gap=accept_gap)
    account = pwd.getpwnam("postgres")
    for directory in (DATA.parent, DATA):
        directory.mkdir(mode=0o700, exist_ok=True)
        os.chown(directory, account.pw_uid, account.pw_gid)
    write_file(UNFINISHED, "")
    started = time.time()
    say(f"restoring {size // 1024**2} MB from repo{repo}")
    _copy(config["stanza"], repo, backups[repo]["label"])
    seconds = time.time() - started
    _write_cluster_configuration(account)
    # Each repository knows the stanza before the first segment of the new timeline is pushed.
    pgbackrest(f"--stanza={config['stanza']}", "--no-online", "stanza-create")
    identifier = control_data(str(DATA), CONTROL)["Database system identifier"]
    write_file(STATE / "stanza.json", json.dumps({"system_id": identifier, "repos": config["repos"]}) + "\n")
    label = backups[repo]["label"]
    outcome = {"repo": repo, "label": label, "bytes": size, "seconds": round(seconds, 3), "at": started}
    outcome |= {"wal_until": until, "gap_accepted": accept_gap}
    write_file(STATE / "restore.json", json.dumps(outcome) + "\n")
    UNFINISHED.unlink()
    say(f"restored {label} from repo{repo} in {seconds:.1f} s")


def _copy(stanza: str, repo: int, label: str) -> None:
    """The files of the backup. Raises FailedError; a damaged one is called that."""
    try:
        pgbackrest(f"--stanza={stanza}", f"--repo={repo}", "restore")
    except FailedError as error:
        if not DAMAGE.search(str(error)):
            raise
        raise FailedError(
            f"the backup {label} in repo{repo} is damaged. Put an earlier copy back (docs/reference/offsite.md), or "
            f"restore an earlier backup by hand (docs/howto/restore-drill.md): {error}"
        ) from None


def _wal_until(config: dict[str, Any], start: str, *, accept_gap: bool) -> str | None:
    """The newest WAL segment there is. Raises FailedError when one before it is missing: PostgreSQL would take the gap
    for the end, and silently drop what was written after it."""
    names = {name for repo in config["repos"] for name in _segments(config["stanza"], repo)}
    by_number = {_number(name): name for name in sorted(names) if _number(name) >= _number(start)}
    if not by_number:
        raise FailedError(f"WAL segment {start}, with which the backup begins, is in no repository")
    newest = max(by_number)
    missing = [number for number in range(_number(start), newest) if number not in by_number]
    if missing and not accept_gap:
        first, timeline = missing[0], by_number[newest][:8]
        raise FailedError(
            f"WAL segment {timeline}{first >> 8:08X}{first & 0xFF:08X} is missing in every repository "
            f"({len(missing)} of {newest - _number(start) + 1}), and there is WAL up to {by_number[newest]}: all that "
            "was written after the gap would be lost. Put an earlier copy back (docs/reference/offsite.md), or accept "
            "the loss: `minipc rebuild` with --accept-missing-wal. Nothing was changed"
        )
    return by_number[missing[0] - 1] if missing and missing[0] - 1 in by_number else by_number[newest]


def _segments(stanza: str, repo: int) -> list[str]:
    """Names of all WAL segments in a repository; none when it can't be read: `_look` has told that."""
    try:
        listed = pgbackrest(
            f"--repo={repo}", "--recurse", "--output=json", "repo-ls", f"archive/{stanza}", timeout_s=600
        )
    except FailedError as error:
        say(f"repo{repo}: its WAL can't be listed: {error}")
        return []
    files = (Path(path).name for path in json.loads(listed or "{}"))
    return [name[:24] for name in files if SEGMENT.fullmatch(name)]


def _number(segment: str) -> int:
    """Its place in the order of segments, whatever the timeline: 256 of 16 MB each make a "log"."""
    return (int(segment[8:16], 16) << 8) + int(segment[16:24], 16)


def _empty() -> None:
    if DATA.exists():
        run(["find", str(DATA), "-mindepth", "1", "-delete"])


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
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "refuse"))
    except FailedError as error:
        sys.exit(ended(error))
