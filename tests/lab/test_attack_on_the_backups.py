"""Test an attacker with the mini PC's credentials for the off-site host: backups, restores and the watcher go on."""

from __future__ import annotations

import pytest

from tests.lab.conftest import on

pytestmark = pytest.mark.timeout(600)
REPOSITORY = "/srv/minipc-offsite/restic/minipc"
POST = """set -eu
url=$(sed s/rest:// /etc/minipc/backups/restic.repository)
name=$(printf %s "$CONTENT" | sha256sum | cut -c1-64)
curl -sS --fail --cacert /etc/minipc/backups/offsite.crt -X POST -d "$CONTENT" "${url}snapshots/$name" >/dev/null
echo "$name"
"""


@pytest.mark.parametrize("content", ["garbage", "x" * 300], ids=["too short", "not encrypted"])
def test_what_is_no_snapshot_stops_neither_backup_nor_restore(pair, content):
    name = on(pair.mini, f"CONTENT={content}\n{POST}").strip()
    try:
        on(pair.mini, "systemctl start minipc-backup@files", timeout_s=300)
        assert f"SKIPPED: snapshot {name}" in on(pair.mini, "journalctl -u minipc-backup@files -n 50 -o cat")
        metrics = on(pair.mini, "cat /var/lib/prometheus/node-exporter/minipc_restic.prom")
        assert "minipc_backup_unreadable_snapshots 1" in metrics
        said = on(
            pair.mini,
            "rm -rf /var/lib/minipc/drills.test; /usr/local/lib/minipc/restore-state /var/lib/minipc/drills.test",
        )
        assert f"SKIPPED: snapshot {name}" in said
    finally:
        on(pair.offsite, f"rm {REPOSITORY}/snapshots/{name}")


def test_a_copy_from_before_the_attack_brings_restic_back(pair):
    on(pair.offsite, "systemctl start minipc-offsite-copy", timeout_s=300)
    before = on(pair.offsite, "ls /srv/minipc-offsite/copies/restic | tail -n 1").strip()
    on(pair.offsite, f"echo garbage >{REPOSITORY}/index/{'0' * 64}; chown restic-rest-server {REPOSITORY}/index/*")
    stopped = on(pair.mini, "systemctl start minipc-backup@files 2>&1 || echo stopped", timeout_s=300)
    assert "stopped" in stopped
    on(pair.offsite, f"/usr/local/lib/minipc/offsite-restore-copy restic {before}")
    on(pair.mini, "systemctl reset-failed; systemctl start minipc-backup@files", timeout_s=300)


@pytest.mark.parametrize("account", ["minipc-sftp", "restic-rest-server"])
def test_an_account_of_the_backups_cannot_fill_the_disk_for_the_system(pair, account):
    """The watcher goes on as well: the same process, round after round."""
    folder = "/srv/minipc-offsite/sftp/pgbackrest" if account == "minipc-sftp" else REPOSITORY
    pid = "systemctl show minipc-watcher -p MainPID --value"
    before = on(pair.offsite, pid)
    fill = f"setpriv --reuid={account} --regid={account} --clear-groups dd if=/dev/zero of={folder}/fill bs=1M"
    try:
        full = on(pair.offsite, f"{fill} 2>&1 || true; rm -f /root/still", timeout_s=300)
        assert "No space left" in full
        on(
            pair.offsite,
            "dd if=/dev/zero of=/root/still bs=1M count=64 status=none; sync /root/still; sleep 70",
            timeout_s=120,
        )
        assert on(pair.offsite, pid) == before
    finally:
        on(pair.offsite, f"rm -f {folder}/fill /root/still")
