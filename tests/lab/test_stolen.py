"""After a theft the rebuilt machine gets new passphrases with new repositories; the old ones open nothing there."""

from __future__ import annotations

import pytest

from tests.lab.conftest import on, run

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]
KNOWN = "/root/known-to-the-thief"


def test_the_repositories_have_new_passphrases_and_restore(pair):
    options = ("--inventory", "lab", "--host", pair.mini.name)
    on(
        pair.mini,
        f"install -d -m 700 {KNOWN}; cp /etc/pgbackrest/pgbackrest.conf /etc/minipc/backups/restic.* {KNOWN}/",
    )
    try:
        done = run("minipc", "stolen", "--repositories", *options, timeout_s=900)
        assert done.code == 0, done.output
        assert "What a person must do now" in done.output
        assert run("minipc", "drill", "--repo", "2", *options, timeout_s=600).code == 0
        old = (
            f"cd /; runuser -u postgres -- pgbackrest --config={KNOWN}/pgbackrest.conf --stanza=main info 2>&1 || true"
        )
        on(pair.mini, f"chmod 755 {KNOWN}; chown postgres {KNOWN}/pgbackrest.conf; chmod 711 /root")
        assert "full backup" not in on(pair.mini, old)
        restic = f"restic --repository-file {KNOWN}/restic.repository --password-file {KNOWN}/restic.password"
        said = on(pair.mini, f"{restic} --cacert /etc/minipc/backups/offsite.crt snapshots 2>&1 || true")
        assert "wrong password" in said
        assert run("minipc", "backup", "now", *options).code == 0
        aside = on(pair.offsite, "ls -d /srv/minipc-offsite/copies/*aside-*")
        assert len(aside.split()) >= 2
    finally:
        on(pair.mini, f"rm -rf {KNOWN}; chmod 700 /root")
