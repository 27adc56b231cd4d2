"""What is played in a fault: before the loss, between the loss and the rebuild, while it runs, and afterwards."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

from minipc import lab
from minipc.errors import MinipcError
from minipc.facts.postgres import RESTORE_UNFINISHED
from minipc.inventory import Target, the_target
from minipc.remote import on, query
from minipc.run import Run
from minipc.secrets import open_store
from minipc.secrets.catalogue import repository_cipher
from playbooks import phases, restore_drill
from playbooks.elsewhere import Elsewhere, Stick, end
from playbooks.stage import REPOSITORY, Attempt, Stage

ARCHIVER_TRIES_S = 120
# On the off-site machine, where the SFTP server does not come.
HIDDEN = "/srv/minipc-offsite/hidden-segment"


# --- red for a named reason -----------------------------------------------------------------------------------------


def fail_a_drill(run: Run, mini: Target) -> None:
    """A question of the drill gets another answer than the expected one."""
    path = "/etc/minipc/backups/drill.json"
    kept = on(mini, f"cat {path}")
    settings = json.loads(kept)
    settings["queries"][0]["expect"] = "== 4711"
    on(mini, f"cat > {path}", stdin=json.dumps(settings))
    try:
        restore_drill.write_events(run, restore_drill.run_on_machine(mini))
    finally:
        on(mini, f"cat > {path}", stdin=f"{kept}\n")


def switch_offsite_off(stage: Stage) -> None:
    """Power off."""
    lab.power_off(stage.offsite)


def switch_offsite_on(stage: Stage) -> None:
    """From the disk it has."""
    lab.start(stage.offsite)


def forget_the_passphrase(stage: Stage) -> None:
    """The repository's, as from a bundle of another machine. The bundle's own is `guess`'s."""
    _place(stage).secrets.set_many({repository_cipher(2): "x" * 32})


def remember_the_passphrase(stage: Stage) -> None:
    """The right one again."""
    name = repository_cipher(2)
    _place(stage).secrets.set_many({name: open_store("lab").read([name])[name].reveal()})


def guess(stage: Stage) -> None:
    """A computer that has the bundle but not its passphrase."""
    place = Elsewhere()
    try:
        place.open(Stick(stage.stick.file, "correct horse battery staple", stage.stick.manifest))
    finally:
        place.remove()


def damage_the_backup(stage: Stage) -> None:
    """A few bytes in the middle of every stored file of the database."""
    files = f"find {REPOSITORY}/backup/main/*/bundle {REPOSITORY}/backup/main/*/pg_data -type f -size +4k 2>/dev/null"
    damage = 'printf damaged | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none'
    on(stage.offsite_target, f"{files} | while read -r file; do {damage}; done")


def remove_a_segment(stage: Stage) -> None:
    """The first one after the backup; later ones are there."""
    names = _segments_after(stage)
    if len(names) < 2:
        raise MinipcError("there are not enough WAL segments after the backup to remove one in the middle")
    on(stage.offsite_target, f"rm {names[0]}")


def remove_all_wal_after_the_backup(stage: Stage) -> None:
    """As if the machine had not reached its off-site machine since the backup."""
    on(stage.offsite_target, f"rm -f {' '.join(_segments_after(stage))}")


def _segments_after(stage: Stage) -> list[str]:
    """Paths of the WAL segments that the newest backup doesn't need, in their order."""
    paths = on(stage.offsite_target, f"find {REPOSITORY}/archive/main -type f -name '0*-*'").split()
    by_name = {Path(path).name[:24]: path for path in paths}
    return [by_name[name] for name in sorted(by_name) if name > stage.last_backup_wal]


# --- survived -------------------------------------------------------------------------------------------------------


def lose_repo1(mini: Target) -> None:
    """The disk with the local repository dies first."""
    on(mini, "find /var/lib/pgbackrest -mindepth 1 -delete")


def crash(stage: Stage, attempt: Attempt) -> None:
    """The computer that rebuilds dies half-way, when the data is back and the service is not."""
    attempt.wait_for_operation(phases.SERVICE.name)
    end(attempt.process, signal.SIGKILL)


def cut_the_power(stage: Stage, attempt: Attempt) -> None:
    """The new machine loses its power in the middle of the restore, and who rebuilds gives up.

    Raises:
        MinipcError: the restore was faster.
    """
    attempt.wait_for_file(RESTORE_UNFINISHED)
    # Before it can say that it failed: what counts is the next attempt.
    end(attempt.process, signal.SIGKILL)
    lab.power_off(attempt.machine)
    lab.start(attempt.machine)
    if lab.run(attempt.machine, ["test", "-e", RESTORE_UNFINISHED], check=False).returncode:
        raise MinipcError("the restore ended before the power did", "nothing was interrupted: play it again")


def end_recovery_early(stage: Stage) -> None:
    """A WAL segment can't be had when recovery comes to it, and is there again afterwards.

    Raises:
        MinipcError: the rebuild did not stop for it.
    """
    hidden = _segments_after(stage)[0]

    def hide(stage: Stage, attempt: Attempt) -> None:
        attempt.wait_for_restored_files()
        on(stage.offsite_target, f"mv {hidden} {HIDDEN}")

    said = stage.fail_once(phases.DATA.name, hide)
    if not re.search(r"data: recovery ended at \S+, before WAL segment \w{24}", said):
        raise MinipcError(f"the first attempt should have told that recovery ended early, but: {said}")
    on(stage.offsite_target, f"mv {HIDDEN} {hidden}")


def look_for_one_new_timeline(stage: Stage) -> None:
    """What the attempt that ended early began is in no repository. Raises MinipcError."""
    histories = sorted(name for name in _stored(stage) if name.endswith(".history"))
    if histories != ["00000002.history"]:
        raise MinipcError(f"off-site there should be the history of one new timeline: {histories}")


def let_offsite_go_away(stage: Stage) -> None:
    """The off-site machine goes away once the files are back, and returns when the server has stopped for lack of WAL.

    Raises:
        MinipcError: the rebuild did not stop for it.
    """

    def go_away(stage: Stage, attempt: Attempt) -> None:
        attempt.wait_for_restored_files()
        on(stage.offsite_target, "systemctl stop minipc-sftp")
        attempt.process.wait(timeout=900)

    try:
        said = stage.fail_once(phases.DATA.name, go_away)
    finally:
        on(stage.offsite_target, "systemctl start minipc-sftp")
    if not said.startswith("data: repo2 does not give its WAL"):
        raise MinipcError(f"the first attempt should have waited for WAL, but: {said}")


def wipe_the_repository(stage: Stage) -> None:
    """A thief with the machine's key deletes all there is; what the rebuild then says puts a copy back.

    Raises:
        MinipcError: the rebuild did not say so.
    """
    on(stage.offsite_target, f"systemctl start minipc-offsite-copy && rm -rf {REPOSITORY}/*", timeout_s=600)
    said = stage.fail_once(phases.DATA.name, lambda *_: None)
    if not said.startswith("data: no repository holds a backup"):
        raise MinipcError(f"the first attempt should have found no backup, but: {said}")
    on(stage.offsite_target, "/usr/local/lib/minipc/offsite-restore-copy", timeout_s=600)


def remove_what_was_wiped(stage: Stage) -> None:
    """What the copy has replaced."""
    on(stage.offsite_target, "rm -rf /srv/minipc-offsite/copies/aside-*", timeout_s=600)


def switch_the_lost_one_on(stage: Stage) -> None:
    """It archives nothing off-site, and reads nothing there; the one in its place doesn't notice.

    Raises:
        MinipcError: it got in.
    """
    old, new = the_target("lab", stage.lost.name), stage.rebuilt
    before = _stored(stage)
    lab.start(stage.lost)
    try:
        query(old, "minipc", "INSERT INTO heartbeat DEFAULT VALUES")
        query(old, "postgres", "SELECT pg_switch_wal()")
        _wait_for_a_failed_push(old)
        for what, command in _WAYS_IN.items():
            if on(old, f"{command} >/dev/null 2>&1 && echo in || true"):
                raise MinipcError(f"the lost machine still gets in by {what}", "its key was not revoked")
        added = _stored(stage) - before
        if foreign := sorted(name for name in added if re.fullmatch(r"00000001\w{16}-\w+\.zst", name)):
            raise MinipcError(f"the lost machine still archives: {', '.join(foreign[:3])}", "its key was not revoked")
    finally:
        lab.power_off(stage.lost)
    if new is None:
        raise MinipcError("there is no machine in its place")
    on(new, "cd / && runuser -u postgres -- pgbackrest --stanza=main check", timeout_s=300)


_RESTIC = "/etc/minipc/backups/restic.repository --password-file /etc/minipc/backups/restic.password"
_WAYS_IN = {
    "SFTP": "cd / && timeout 50 runuser -u postgres -- pgbackrest --repo=2 repo-ls",
    "restic": f"timeout 50 restic --repository-file {_RESTIC} --cacert /etc/minipc/backups/offsite.crt cat config",
}


def _stored(stage: Stage) -> set[str]:
    """Names of all WAL files off-site."""
    return set(on(stage.offsite_target, f"find {REPOSITORY}/archive -type f -printf '%f\\n'").split())


def _wait_for_a_failed_push(old: Target) -> None:
    give_up_at = time.monotonic() + ARCHIVER_TRIES_S
    while query(old, "postgres", "SELECT failed_count > 0 FROM pg_stat_archiver") != "t":
        if time.monotonic() > give_up_at:
            raise MinipcError("the lost machine's archiver did not fail once", "does it still get in?")
        time.sleep(1)


def _place(stage: Stage) -> Elsewhere:
    if stage.place is None:
        raise MinipcError("nothing was lost yet")
    return stage.place
