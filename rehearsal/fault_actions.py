"""Inject faults: before the loss, between the loss and the rebuild, during the rebuild, and after it."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.core.polling import wait_until
from minipc.evidence.run import Run
from minipc.pyinfra_ext.facts.postgres import RESTORE_OUTCOME, RESTORE_UNFINISHED
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import on, query
from minipc.secrets import open_store
from minipc.secrets.catalogue import repository_cipher
from minipc_machine.replaced import UNITS
from playbooks import phases, restore_drill
from rehearsal import lab
from rehearsal.fault_setup import REPOSITORY, FaultSetup, RunningRebuild
from rehearsal.second_controller import SealedBundle, SecondController, end

ARCHIVER_FAILS_WITHIN_S, STOPS_WITHIN_S = 120, 120
# On the off-site host, outside the directory that the SFTP server serves.
HIDDEN = "/srv/minipc-offsite/hidden-segment"
FILES_RESTORED = f"[ -e {RESTORE_OUTCOME} ] && [ ! -e {RESTORE_UNFINISHED} ]"


# --- the run must fail for a named reason ---------------------------------------------------------------------------


def fail_a_drill(run: Run, mini: Target) -> None:
    """Run a restore drill in which one query expects another result."""
    path = "/etc/minipc/backups/drill.json"
    original = on(mini, f"cat {path}")
    settings = json.loads(original)
    next(each for each in settings["services"] if each["queries"])["queries"][0]["expect"] = "== 4711"
    on(mini, f"cat > {path}", stdin=json.dumps(settings))
    try:
        restore_drill.write_events(run, restore_drill.run_on_machine(mini))
    finally:
        on(mini, f"cat > {path}", stdin=f"{original}\n")


def open_bundle_with_wrong_passphrase(setup: FaultSetup) -> None:
    """Open the bundle on another computer with a wrong passphrase."""
    controller = SecondController()
    try:
        controller.open(SealedBundle(setup.bundle.file, "correct horse battery staple", setup.bundle.manifest))
    finally:
        controller.remove()


def replace_repository_passphrase(setup: FaultSetup) -> None:
    """Replace the repository's passphrase on the second controller, as if the bundle were of another machine."""
    setup.controller.secrets.set_many({repository_cipher(2): "x" * 32})


def restore_repository_passphrase(setup: FaultSetup) -> None:
    """Set the right passphrase again."""
    name = repository_cipher(2)
    setup.controller.secrets.set_many({name: open_store("lab").read([name])[name].reveal()})


def remove_first_segment(setup: FaultSetup) -> None:
    """Remove the first WAL segment after the backup; later ones stay."""
    segments = _segments_after_backup(setup)
    if len(segments) < 2:
        raise MinipcError("there are not enough WAL segments after the backup to remove one in the middle")
    setup.on_offsite(f"rm {segments[0]}")


def damage_backup(setup: FaultSetup) -> None:
    """Overwrite a few bytes in the middle of every stored file of the database."""
    files = f"find {REPOSITORY}/backup/main/*/bundle {REPOSITORY}/backup/main/*/pg_data -type f -size +4k 2>/dev/null"
    damage = 'printf damaged | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none'
    setup.on_offsite(f"{files} | while read -r file; do {damage}; done")


def remove_all_segments(setup: FaultSetup) -> None:
    """Remove all WAL after the backup, as if the machine had not reached the off-site host since."""
    setup.on_offsite(f"rm -f {' '.join(_segments_after_backup(setup))}")


def _segments_after_backup(setup: FaultSetup) -> list[str]:
    """Return the paths of the WAL segments that the newest backup does not need, oldest first."""
    paths = setup.on_offsite(f"find {REPOSITORY}/archive/main -type f -name '0*-*'").split()
    by_name = {Path(path).name[:24]: path for path in paths}
    return [by_name[name] for name in sorted(by_name) if name > setup.last_backup_wal]


# --- the rebuild must survive it ------------------------------------------------------------------------------------


def delete_repo1(mini: Target) -> None:
    """Delete the local repository."""
    on(mini, "find /var/lib/pgbackrest -mindepth 1 -delete")


def kill_rebuild(setup: FaultSetup, rebuild: RunningRebuild) -> None:
    """Kill the rebuild when the data is restored and the service does not run yet."""
    rebuild.wait_for_phase(phases.SERVICE.name)
    end(rebuild.process, signal.SIGKILL)


def cut_power_during_restore(setup: FaultSetup, rebuild: RunningRebuild) -> None:
    """Cut the new machine's power in the middle of the restore.

    Raises:
        MinipcError: the restore had already ended.
    """
    rebuild.wait_for_machine(f"[ -e {RESTORE_UNFINISHED} ]")
    # Kill it before it reports its failure: only the next attempt is judged.
    end(rebuild.process, signal.SIGKILL)
    lab.power_off(rebuild.machine)
    lab.start(rebuild.machine)
    if lab.run(rebuild.machine, ["test", "-e", RESTORE_UNFINISHED], check=False).returncode:
        raise MinipcError("the restore ended before the power was cut", "run this fault again")


def hide_segment_during_recovery(setup: FaultSetup) -> None:
    """Hide a WAL segment while recovery needs it. The first rebuild must say where recovery ended. Put it back."""
    segment = _segments_after_backup(setup)[0]

    def hide(setup: FaultSetup, rebuild: RunningRebuild) -> None:
        rebuild.wait_for_machine(FILES_RESTORED)
        setup.on_offsite(f"mv {segment} {HIDDEN}")

    setup.expect_failure(r"data: recovery ended at \S+, before WAL segment \w{24}", hide)
    setup.on_offsite(f"mv {HIDDEN} {segment}")


def expect_one_new_timeline(setup: FaultSetup) -> None:
    """Check that the attempt that ended early left no timeline in a repository. Raises MinipcError if it did."""
    histories = sorted(name for name in _stored_wal(setup) if name.endswith(".history"))
    if histories != ["00000002.history"]:
        raise MinipcError(f"expected one new timeline off-site, 00000002.history, found: {histories}")


def stop_offsite_during_recovery(setup: FaultSetup) -> None:
    """Stop the off-site SFTP server while recovery needs WAL. The first rebuild must say so. Start it again."""

    def stop(setup: FaultSetup, rebuild: RunningRebuild) -> None:
        rebuild.wait_for_machine(FILES_RESTORED)
        setup.on_offsite("systemctl stop minipc-sftp")
        rebuild.process.wait(timeout=900)

    try:
        setup.expect_failure("^data: repo2 does not deliver its WAL", stop)
    finally:
        setup.on_offsite("systemctl start minipc-sftp")


def wipe_repository(setup: FaultSetup) -> None:
    """Delete the off-site repository with the machine's key, then run the command that the rebuild recommends."""
    setup.on_offsite(f"systemctl start minipc-offsite-copy && rm -rf {REPOSITORY}/*")
    setup.expect_failure("^data: no repository contains a backup")
    setup.on_offsite("/usr/local/lib/minipc/offsite-restore-copy")


def start_lost_machine(setup: FaultSetup) -> None:
    """Start the lost machine. It must not serve, nor read or write off-site, and the rebuilt one must still archive.

    Raises:
        MinipcError: the lost machine serves or has access, or the rebuilt one has none.
    """
    if setup.rebuilt is None:
        raise MinipcError("no machine was rebuilt")
    old, stored_before = the_target(LAB, setup.lost.name), _stored_wal(setup)
    lab.start(setup.lost)
    try:
        if not wait_until(lambda: not _serving(old), within_s=STOPS_WITHIN_S, every_s=2):
            raise MinipcError(f"the lost machine still serves: {_serving(old)}", "journalctl -u minipc-replaced there")
        # In wrong hands it does not stop itself.
        on(old, "systemctl stop minipc-replaced.timer; nft delete table inet minipc_replaced")
        query(old, "minipc", "INSERT INTO heartbeat DEFAULT VALUES")
        query(old, "postgres", "SELECT pg_switch_wal()")
        _wait_for_failed_push(old)
        for protocol, command in _OFFSITE_ACCESS.items():
            if on(old, f"{command} >/dev/null 2>&1 && echo in || true"):
                raise MinipcError(f"the lost machine still has access through {protocol}", "its key was not revoked")
        added = _stored_wal(setup) - stored_before
        if foreign := sorted(name for name in added if re.fullmatch(r"00000001\w{16}-\w+\.zst", name)):
            raise MinipcError(f"the lost machine still archives: {', '.join(foreign[:3])}", "its key was not revoked")
    finally:
        lab.power_off(setup.lost)
    on(setup.rebuilt, "cd / && runuser -u postgres -- pgbackrest --stanza=main check", timeout_s=300)


def _serving(old: Target) -> str:
    """Return what still serves on a machine: units, its name at the ingress, or an open network; empty if nothing."""
    patterns = [*UNITS, *(f"minipc-{each.name}-*" for each in old.settings.services.declared)]
    command = f"systemctl list-units --state=active,activating --plain --no-legend {shlex.join(patterns)}"
    found = [line.split()[0] for line in on(old, command).splitlines()]
    side = old.side("public")
    names = [each.domain for each in old.settings.services.public]
    found += [name for name in names if name and side.http_status(name, "/", address=side.ipv4) != "000"]
    cut_off = on(old, "nft list table inet minipc_replaced >/dev/null 2>&1 && cat /run/motd.d/minipc-replaced || true")
    return ", ".join([*found, *([] if "was replaced" in cut_off else ["the network is open"])])


_METRICS = "/etc/prometheus/minipc/watcher"
_RESTIC = "/etc/minipc/backups/restic.repository --password-file /etc/minipc/backups/restic.password"
_OFFSITE_ACCESS = {
    "SFTP": "cd / && timeout 50 runuser -u postgres -- pgbackrest --repo=2 repo-ls",
    "restic": f"timeout 50 restic --repository-file {_RESTIC} --cacert /etc/minipc/backups/offsite.crt cat config",
    "remote write": f"curl -sf --max-time 20 --cacert {_METRICS}.crt --cert {_METRICS}-client.crt "
    f'--key {_METRICS}-client.key -u "minipc:$(cat {_METRICS}.password)" '
    "\"$(sed -n 's#^  - url: \\(.*\\)/api/v1/write#\\1#p' /etc/prometheus/minipc/prometheus.yml)/-/healthy\"",
}


def _stored_wal(setup: FaultSetup) -> set[str]:
    """Return the names of all WAL files off-site."""
    return set(setup.on_offsite(f"find {REPOSITORY}/archive -type f -printf '%f\\n'").split())


def _wait_for_failed_push(old: Target) -> None:
    failed = "SELECT failed_count > 0 FROM pg_stat_archiver"
    if not wait_until(lambda: query(old, "postgres", failed) == "t", within_s=ARCHIVER_FAILS_WITHIN_S, every_s=1):
        raise MinipcError("the lost machine's archiver did not fail", "check whether its key is still accepted")
