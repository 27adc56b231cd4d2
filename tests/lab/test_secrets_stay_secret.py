"""Searches the machine, its processes, its journal and everything that was printed for the lab's secret values."""

from __future__ import annotations

from pathlib import Path

import pytest

from minipc.secrets import open_store
from tests.lab.conftest import converge, on, run

# The files that exist to hold secrets: path -> mode and owner.
ALLOWED = {
    "/etc/minipc/backups/restic.password": "600 root",
    "/etc/minipc/backups/restic.repository": "600 root",
    "/etc/minipc/vpn/wg0.conf": "600 root",
    "/etc/pgbackrest/pgbackrest.conf": "640 root",
    "/etc/pgbackrest/sftp_key": "600 postgres",
    "/etc/prometheus/minipc/alertmanager.password": "600 prometheus",
    "/etc/prometheus/minipc/postgres-exporter.env": "600 root",
    "/etc/prometheus/minipc/redis-exporter.env": "600 root",
    "/etc/prometheus/minipc/watchdog_url": "600 prometheus",
    "/etc/redis/users.acl": "640 redis",
    "/etc/workload/env": "600 root",
}


def telling(value: str) -> list[str]:
    """The value; of a private key the lines that no other key has (the first of an OpenSSH key is the same in all)."""
    lines = value.strip().splitlines()
    return [line for line in lines[2:-1] if len(line) >= 20] if len(lines) > 1 else lines


@pytest.fixture(scope="module")
def values(rehearsal) -> list[str]:
    store = open_store("lab")
    found = [line for secret in store.read(store.names()).values() for line in telling(secret.reveal())]
    assert len(found) >= 4
    assert all(len(value) >= 20 for value in found)
    return found


def test_only_the_files_meant_for_secrets_hold_them(site, values):
    patterns = "\n".join(values)
    script = f"cat > /run/patterns <<'END'\n{patterns}\nEND\n"
    places = "/etc /var /opt /root /home /srv /usr/local /tmp /run"
    script += f"grep -rlFf /run/patterns {places} --exclude=patterns 2>/dev/null | sort -u; rm -f /run/patterns"
    assert set(on(site, script, timeout_s=200).split()) == set(ALLOWED)
    for path, expected in ALLOWED.items():
        assert on(site, f"stat -c '%a %U' {path}").strip() == expected


def test_the_journal_holds_none(site, values):
    journal = on(
        site,
        "journalctl --no-pager -o cat; cat /var/log/postgresql/* /var/log/caddy/* 2>/dev/null || true",
        timeout_s=200,
    )
    assert "PostgreSQL 17" in journal
    assert "service started" in journal
    assert [value for value in values if value in journal] == []


def test_the_rehearsal_printed_and_kept_none(rehearsal, values):
    texts = {"what was printed": rehearsal.done.output}
    texts |= {str(path): path.read_text(errors="replace") for path in rehearsal.directory.rglob("*") if path.is_file()}
    assert any("output.log" in name for name in texts)
    leaks = [name for name, text in texts.items() if any(value in text for value in values)]
    assert leaks == []


def test_a_converge_that_places_every_secret_shows_none(site, values, tmp_path):
    """With everything that makes pyinfra talk: -vvv and --diff; while /proc is watched on both sides."""
    on(site, "rm /etc/redis/users.acl /etc/workload/env")
    on(site, "runuser -u postgres -- psql -qc 'ALTER ROLE workload PASSWORD NULL'")
    watcher = (
        "(end=$((SECONDS+90)); while [ $SECONDS -lt $end ] && [ ! -e /run/watch-stop ]; do "
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; done) > /run/watched 2>/dev/null </dev/null &"
    )
    on(site, f"rm -f /run/watch-stop; {watcher}")
    done = converge(site, "postgres", "redis", "workload", options=["-vvv", "--diff", "--debug"])
    on(site, "touch /run/watch-stop; sleep 0.5")
    assert done.code == 0, done.output[-3000:]
    watched = on(site, "cat /run/watched; rm -f /run/watched /run/watch-stop", timeout_s=60)
    assert "psql" in watched, "the watcher saw nothing"
    assert [value for value in values if value in watched] == []
    assert [value for value in values if value in done.output] == []
    assert "users.acl" in done.output


def test_a_plan_with_diff_shows_none(site, values):
    on(site, "echo '# touched' >> /etc/redis/users.acl; echo '# touched' >> /etc/workload/env")
    planned = run("minipc", "plan", "--inventory", "lab", "--host", site.name, "redis", "workload")
    assert planned.code == 2, planned.output
    assert "secret: content not shown" in planned.output
    assert [value for value in values if value in planned.output] == []
    assert converge(site, "redis", "workload").code == 0


def test_none_is_in_the_repository_or_its_logs(values):
    from minipc.paths import ROOT

    leaks = []
    for path in (*ROOT.glob("*"), *(ROOT / "reports").rglob("*"), *(ROOT / "inventory").rglob("*")):
        if path.is_file() and any(value.encode() in Path(path).read_bytes() for value in values):
            leaks.append(str(path))
    assert leaks == []
