"""Search the machine, its processes, its journal and all output for the lab's secret values."""

from __future__ import annotations

from pathlib import Path

import pytest

from minipc import config
from minipc.secrets import ed25519, open_store
from minipc.secrets.catalogue import WATCHER_CLIENT_KEY
from tests.lab.conftest import converge, on, run

# Where podman keeps what it hands to containers. Nobody but root can enter.
CONTAINERS = ("/var/lib/containers/storage", "/run/crun")
SERVICE = next(each for each in config.load("lab").services.declared if each.postgres)
ROLE = SERVICE.postgres.roles[1] if SERVICE.postgres else ""
SERVICE_FILE = f"/etc/minipc/services/{SERVICE.name}/{next(iter(SERVICE.processes))}.yaml"
# The files that exist to hold secrets: path -> mode and owner.
ALLOWED = {
    "/etc/minipc/backups/restic.password": "600 root",
    "/etc/minipc/backups/restic.repository": "600 root",
    "/etc/minipc/redis-alive.json": "600 root",
    "/etc/minipc/vpn/wg0.conf": "600 root",
    "/etc/pgbackrest/pgbackrest.conf": "640 root",
    "/etc/pgbackrest/sftp_key": "600 postgres",
    "/etc/prometheus/minipc/alertmanager.password": "600 prometheus",
    "/etc/prometheus/minipc/postgres-exporter.env": "600 root",
    "/etc/prometheus/minipc/redis-exporter.json": "600 prometheus",
    "/etc/prometheus/minipc/watcher-client.key": "600 prometheus",
    "/etc/prometheus/minipc/watcher.password": "600 prometheus",
    "/etc/redis/users.acl": "640 redis",
}


def telling(value: str) -> list[str]:
    """Return the value, or of a private key only its own lines (the first line of all OpenSSH keys is the same)."""
    lines = value.strip().splitlines()
    return [line for line in lines[2:-1] if len(line) >= 20] if len(lines) > 1 else lines


@pytest.fixture(scope="module")
def values(rehearsal) -> list[str]:
    store = open_store("lab")
    secrets = store.read(store.names())
    found = [line for secret in secrets.values() for line in telling(secret.reveal())]
    # On the machine this key is in another format, with one line of content.
    found += ed25519.pem(secrets[WATCHER_CLIENT_KEY]).splitlines()[1:-1]
    assert len(found) >= 4
    assert all(len(value) >= 20 for value in found)
    return found


def test_only_the_files_for_secrets_contain_them(site, values):
    patterns = "\n".join(values)
    script = f"cat > /run/patterns <<'END'\n{patterns}\nEND\n"
    places = "/etc /var /opt /root /home /srv /usr/local /tmp /run"
    script += f"grep -rlFf /run/patterns {places} --exclude=patterns 2>/dev/null | sort -u; rm -f /run/patterns"
    found = {path for path in on(site, script, timeout_s=200).split() if not path.startswith(CONTAINERS)}
    assert found == set(ALLOWED)
    for folder in CONTAINERS:
        assert on(site, f"stat -c '%a %U' {folder}").strip() == "700 root"
    for path, expected in ALLOWED.items():
        assert on(site, f"stat -c '%a %U' {path}").strip() == expected


def test_the_journal_contains_no_secret(site, values):
    journal = on(
        site,
        "journalctl --no-pager -o cat; cat /var/log/postgresql/* /var/log/caddy/* 2>/dev/null || true",
        timeout_s=200,
    )
    assert "PostgreSQL 17" in journal
    assert "service started" in journal
    assert [value for value in values if value in journal] == []


def test_the_rehearsal_printed_and_wrote_no_secret(rehearsal, values):
    texts = {"what was printed": rehearsal.done.output}
    texts |= {str(path): path.read_text(errors="replace") for path in rehearsal.directory.rglob("*") if path.is_file()}
    assert any("output.log" in name for name in texts)
    leaks = [name for name, text in texts.items() if any(value in text for value in values)]
    assert leaks == []


def test_a_converge_that_places_every_secret_shows_no_secret(site, values, tmp_path):
    """It runs with -vvv and --diff, while /proc is watched on both sides."""
    on(site, f"rm /etc/redis/users.acl {SERVICE_FILE}")
    on(site, f"runuser -u postgres -- psql -qc 'ALTER ROLE {ROLE} PASSWORD NULL'")
    watcher = (
        "(end=$((SECONDS+90)); while [ $SECONDS -lt $end ] && [ ! -e /run/watch-stop ]; do "
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; done) > /run/watched 2>/dev/null </dev/null &"
    )
    on(site, f"rm -f /run/watch-stop; {watcher}")
    done = converge(site, "postgres", "redis", "services", options=["-vvv", "--diff", "--debug"])
    on(site, "touch /run/watch-stop; sleep 0.5")
    assert done.code == 0, done.output[-3000:]
    watched = on(site, "cat /run/watched; rm -f /run/watched /run/watch-stop", timeout_s=60)
    assert "psql" in watched, "the watcher saw nothing"
    assert [value for value in values if value in watched] == []
    assert [value for value in values if value in done.output] == []
    assert "users.acl" in done.output


def test_a_plan_with_diff_shows_no_secret(site, values):
    on(site, f"echo '# touched' >> /etc/redis/users.acl; echo '# touched' >> {SERVICE_FILE}")
    planned = run("minipc", "plan", "--inventory", "lab", "--host", site.name, "redis", "services")
    assert planned.code == 2, planned.output
    assert "secret: content not shown" in planned.output
    assert [value for value in values if value in planned.output] == []
    assert converge(site, "redis", "services").code == 0


def test_no_secret_is_in_the_repository_or_its_logs(values):
    from minipc.core.paths import ROOT

    leaks = []
    for path in (*ROOT.glob("*"), *(ROOT / "reports").rglob("*"), *(ROOT / "inventory").rglob("*")):
        if path.is_file() and any(value.encode() in Path(path).read_bytes() for value in values):
            leaks.append(str(path))
    assert leaks == []
