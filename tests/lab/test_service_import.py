"""A service on its way in and out, on real machines: moved from an old place, drilled, brought back, removed.

Three small machines: the mini PC, its off-site host, and the old place with PostgreSQL and a folder of files.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from minipc.core import paths
from minipc.core.environment import LAB
from minipc.core.paths import ROOT
from minipc.core.variables import SERVICES_VARIABLE
from minipc.images import prerequisites
from minipc.remote.inventory import the_target
from minipc.services import images
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab.inventory import entry
from rehearsal.second_controller import share_cache
from tests.lab.conftest import BIN, Done, converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
NAME = f"move-{os.getpid()}"
OFFSITE, OLD = f"offsite-{NAME}", f"old-{NAME}"
DEPLOYS = ("host", "firewall", "repositories", "volumes", "postgres", "backups", "redis", "images", "services", "edge")
RESTORE = ("--data", "postgres_from_backup=restore")
PAGE = ROOT / "docs/howto/move-in.md"
EXAMPLE = ROOT / "examples/parkday"
DOMAIN = "parkday.minipc.test"
ROWS, FILES_MB = 200_000, 100
# As on a rented server: the program, PostgreSQL, and files in a folder.
OLD_PLACE = f"""
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends postgresql python3-fastapi python3-psycopg python3-websockets \\
    uvicorn rsync curl >/dev/null
cd /
runuser -u postgres -- createuser --superuser root
createdb parkday
mkdir -p /srv/parkday/uploads
cat > /etc/systemd/system/parkday.service <<'END'
[Service]
Environment=DATABASE_URL=postgresql:///parkday UPLOADS=/srv/parkday/uploads PYTHONPATH=/srv/parkday
ExecStartPre=/usr/bin/python3 /srv/parkday/parkday.py migrate
ExecStart=/usr/bin/uvicorn parkday:app --port 8000
END
systemctl daemon-reload
systemctl start parkday
psql -Xq parkday -c "INSERT INTO lots (name, free) SELECT 'lot ' || n, n % 50 FROM generate_series(1, {ROWS}) n" \\
    -c "INSERT INTO \\"Users\\" (email) VALUES ('a@example.org'), (E'line\\nbreak')"
for n in $(seq {FILES_MB}); do head -c 1000000 /dev/urandom > /srv/parkday/uploads/$n.jpg; done
"""
SERVICE = """\
image: example.org/moved
user: 1000
processes:
  web: {port: 8080}
postgres:
  database: moved
  extensions: [{name: citext}]
volumes:
  uploads: {mount: /data, size_gb: 1, data_class: must recover}
"""
# As `pg_dump` writes it elsewhere, with another owner.
DUMP = """\
CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;
COMMENT ON EXTENSION citext IS 'data type for case-insensitive character strings';
CREATE SCHEMA billing;
ALTER SCHEMA billing OWNER TO elsewhere;
CREATE TABLE public."Users" (id integer NOT NULL, name public.citext, at timestamp with time zone, raw bytea);
ALTER TABLE public."Users" OWNER TO elsewhere;
CREATE TABLE billing.invoices (id integer NOT NULL);
COPY public."Users" (id, name, at, raw) FROM stdin;
1\tAnna\t2026-11-30 10:00:00.5+00\t\\\\x00ff
2\tline\\nbreak\t\\N\t\\N
\\.
COPY billing.invoices (id) FROM stdin;
7
\\.
ALTER TABLE ONLY public."Users" ADD CONSTRAINT users_pkey PRIMARY KEY (id);
GRANT ALL ON TABLE public."Users" TO elsewhere;
"""
SAME = ('public."Users": 2 rows, the same on both sides', "billing.invoices: 1 rows, the same on both sides")


@dataclass(frozen=True)
class Places:
    """The machines, the folder with the service files, and the environment of commands."""

    mini: lab.Machine
    offsite: lab.Machine
    old: lab.Machine
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {SERVICES_VARIABLE: str(self.folder)}

    def minipc(self, *words: str) -> Done:
        return run("minipc", *words, "--inventory", "lab", "--host", self.mini.name, env=self.env)

    def ask(self, database: str, sql: str) -> str:
        return on(self.mini, f"cd / && runuser -u postgres -- psql -XAtq -d {database} <<'EOF'\n{sql}\nEOF").strip()


@pytest.fixture(scope="module")
def places(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Provide a mini PC with two services that have no data yet, its off-site host, and the old place."""
    folder = tmp_path_factory.mktemp("services")
    example = yaml.safe_load((EXAMPLE / "services/parkday.yaml").read_text())
    example |= {"build": str(EXAMPLE), "redis": {"kind": "queue"}}
    (folder / "parkday.yaml").write_text(yaml.safe_dump(example))
    (folder / "moved.yaml").write_text(SERVICE)
    prerequisites.install([] if Path("/usr/bin/rsync").exists() else ["rsync"])
    names = [OFFSITE, NAME, OLD]
    lab.down(names)
    before, os.environ[SERVICES_VARIABLE] = os.environ[SERVICES_VARIABLE], str(folder)
    try:
        offsite, mini, old = (lab.up(name, disk_gb=6, podman=name == NAME) for name in names)
        for machine in (offsite, mini):
            adopt(LAB, entry(machine), machine.host_key_fingerprint)
        found = Places(mini, offsite, old, folder)
        assert run("minipc", "secrets", "init", "--inventory", "lab", env=found.env).code == 0
        image = images.ensure(the_target(LAB, NAME).settings.services.named("parkday"))
        if isinstance(image, images.Missing):
            pytest.skip(f"NOT EXERCISED: {image.reason}")
        for machine, deploys in ((offsite, ()), (mini, DEPLOYS)):
            done = converge(machine, *deploys, env=found.env)
            assert done.code == 0, done.output[-4000:]
        subprocess.run(
            lab.ssh_command(old, "sh", "-c", "mkdir -p /srv/parkday && cat > /srv/parkday/parkday.py"),
            input=(EXAMPLE / "parkday.py").read_bytes(),
            check=True,
        )
        on(old, OLD_PLACE, timeout_s=300)
        yield found
    finally:
        os.environ[SERVICES_VARIABLE] = before
        lab.down(names)


def commands_of_the_page() -> list[list[str]]:
    """Return the commands of each block of the page."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [block.splitlines() for block in blocks]


def as_here(command: str, places: Places) -> str:
    """Return a command of the page with the names of the lab; nothing else is changed."""
    command = command.replace("shop.example.org", DOMAIN).replace("ADDRESS", places.mini.public_ipv4)
    command = re.sub(r"\bshop\b", "parkday", command)
    if command.startswith("curl "):
        return f"ip netns exec public {command} --insecure --fail --silent --show-error"
    return f"{command} --inventory lab --host {NAME}" if command.startswith("minipc ") else command


def test_the_page_moves_a_service(places: Places, tmp_path: Path) -> None:
    """Every command of the page, as it is written there."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin/ssh"
    to_old = f"/usr/bin/ssh -F {lab.ssh_config_path()} -o ControlPath=none {OLD}"
    ssh.write_text(
        f'#!/bin/sh\ncase " $* " in *" old.example.org "*) shift; exec {to_old} "$@";; esac\nexec /usr/bin/ssh "$@"\n'
    )
    ssh.chmod(0o755)
    env = os.environ | places.env | {"PATH": f"{tmp_path / 'bin'}:{BIN}:{os.environ['PATH']}"}

    def do(command: str) -> str:
        line = as_here(command, places)
        done = subprocess.run(
            ["bash", "-euc", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
        )
        log = "journalctl -u 'minipc-parkday-*' -n 60 -o cat --no-pager; systemctl list-units 'minipc-parkday*'"
        log = on(places.mini, log, check=False) if done.returncode else ""
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}\n{log}"
        return done.stdout

    rehearsed, looked, moved = commands_of_the_page()
    said = [do(command) for command in rehearsed]
    assert f"public.lots: {ROWS} rows, the same on both sides" in said[-1]
    assert 'public."Users": 2 rows, the same on both sides' in said[-1]
    assert f"uploads: {FILES_MB} files, the same on both sides" in said[-1]
    assert [do(command) for command in looked]
    on(places.old, 'curl --silent --fail --data \'{"name": "late", "free": 7}\' http://127.0.0.1:8000/lots')
    on(places.old, "curl --silent --fail --data photo http://127.0.0.1:8000/photos")

    began = time.monotonic()
    assert moved.pop() == "minipc dns cutover", "tests/lab/test_dns.py runs it"
    said = [do(command) for command in moved]
    print(f"\ndowntime from the last write at the old place until an answer here: {time.monotonic() - began:.1f} s")
    print("\n".join(line for text in said for line in text.splitlines() if line.startswith("downtime of")))
    assert f"public.lots: {ROWS + 1} rows, the same on both sides" in said[-2]
    assert f"uploads: {FILES_MB + 1} files, the same on both sides" in said[-2]
    assert re.search(r"^downtime of parkday: [\d.]+ s, of which", said[-2], re.M), said[-2]
    lots = json.loads(do("curl --resolve shop.example.org:443:ADDRESS https://shop.example.org/lots"))
    assert max(lots, key=lambda each: each["id"])["name"] == "late"
    assert (
        places.ask("parkday", "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        == "parkday_owner"
    )


def test_a_failed_import_changes_nothing(places: Places, tmp_path: Path) -> None:
    (tmp_path / "dump.sql").write_text(DUMP)
    (tmp_path / "files/sub").mkdir(parents=True)
    (tmp_path / "files/sub/photo ü.jpg").write_bytes(b"photo")

    def move_in(*more: str) -> Done:
        dump, files = str(tmp_path / "dump.sql"), str(tmp_path / "files")
        return places.minipc("service", "import", "moved", "--dump", dump, "--files", files, *more)

    done = move_in()
    assert done.code == 0, done.output
    assert all(line in done.output for line in (*SAME, "uploads: 1 files, the same on both sides")), done.output
    assert "moved does not run here yet" in done.output
    owners = "SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname IN ('public', 'billing')"
    assert places.ask("moved", owners) == "moved_owner"
    assert places.ask("moved", "SET ROLE moved; SELECT name FROM public.\"Users\" WHERE name = 'ANNA'") == "Anna"
    assert on(places.mini, "stat -c '%u %a' '/srv/minipc/volumes/moved/uploads/sub/photo ü.jpg'").strip() == "1000 600"
    assert on(places.mini, "ls /run/minipc-import-* 2>/dev/null | wc -l").strip() == "0"

    done = move_in()
    assert done.code == 3, done.output
    assert "is not empty: it has billing.invoices, Users" in done.output

    # A statement that fails in the end leaves everything as it was.
    (tmp_path / "dump.sql").write_text(DUMP + "SELECT 1 / 0;\n")
    done = move_in("--again")
    assert done.code == 1, done.output
    assert "division by zero" in done.output
    assert places.ask("moved", 'SELECT count(*) FROM public."Users"') == "2"

    (tmp_path / "dump.sql").write_text(DUMP.replace("7\n\\.", "7\n8\n\\."))
    done = move_in("--again")
    assert done.code == 0, done.output
    assert "billing.invoices: 2 rows, the same on both sides" in done.output
    assert places.ask("moved", "SET ROLE moved; SELECT count(*) FROM billing.invoices") == "2"


def test_the_drill_loads_the_queue_from_the_backup(places: Places) -> None:
    password = on(places.mini, "sed -n 's/^user parkday on >\\([^ ]*\\) .*/\\1/p' /etc/redis/queue-parkday.acl").strip()
    port = on(places.mini, "sed -n 's/^port //p' /etc/redis/redis-queue-parkday.conf").strip()
    ask = f"REDISCLI_AUTH={password} redis-cli --user parkday -p {port}"
    on(places.mini, f"for n in $(seq 7); do {ask} set parkday:$n job >/dev/null; done")
    # The copy is written five minutes after a change; nobody may ask for it but the server itself.
    on(places.mini, "systemctl restart redis-server@queue-parkday; test -s /var/lib/redis-queues/parkday/dump.rdb")
    on(places.mini, "systemctl start minipc-backup@files", timeout_s=200)
    text = on(
        places.mini,
        "systemctl start minipc-drill@1 || journalctl -u minipc-drill@1 -n 30 -o cat; "
        "cat /var/lib/minipc/drills/last.json",
        timeout_s=400,
    )
    result = json.loads(text[text.index("{") :])
    assert result["verdict"] == "pass", text
    (check,) = [each for each in result["checks"] if "queue" in each["name"]]
    assert check["name"] == "parkday: Redis loads the queue from its backup"
    assert (check["outcome"], check["message"].split(",")[0]) == ("passed", "7 keys")
    assert on(places.mini, "ls -d /var/lib/minipc/queue-drill-* 2>/dev/null | wc -l").strip() == "0"


def test_a_rebuild_with_an_empty_cache_takes_the_image_from_the_backup(places: Places, tmp_path: Path) -> None:
    released = on(places.mini, "cat /var/lib/minipc/images/parkday/released").split()
    on(places.mini, "systemctl start minipc-backup@state", timeout_s=200)
    on(
        places.mini,
        "systemctl stop minipc-parkday-api minipc-parkday-worker; podman rmi --all --force >/dev/null; "
        "rm -rf /var/lib/minipc/images /var/lib/minipc/backups/state.json",
    )
    share_cache(paths.cache_dir(), tmp_path / "cache")
    env = places.env | {"MINIPC_CACHE_DIR": str(tmp_path / "cache")}
    for deploys in (("repositories",), ("images", "services")):
        done = converge(places.mini, *deploys, options=RESTORE, env=env)
        assert done.code == 0, done.output[-4000:]
    names = on(places.mini, "podman images --format '{{.Repository}}:{{.Tag}}' --filter reference=localhost/minipc/*")
    assert f"localhost/minipc/parkday:{released[0][:12]}" in names.split()
    assert (tmp_path / "cache/artifacts/service-images/parkday" / f"{released[0]}.tar").exists()
    assert on(places.mini, "systemctl is-active minipc-parkday-api").strip() == "active"


def test_it_leaves_nothing_but_its_data_and_that_on_request_only(places: Places) -> None:
    (places.folder / "parkday.yaml").unlink()
    for machine, deploys in ((places.mini, DEPLOYS), (places.offsite, ("watcher",))):
        done = converge(machine, *deploys, env=places.env)
        assert done.code == 0, done.output[-4000:]
        assert on(machine, "grep -rlI parkday /etc /run/systemd /var/lib/minipc-watcher 2>/dev/null || true") == ""
    assert on(places.mini, "systemctl list-units --all --plain --no-legend '*parkday*'") == ""
    loaded = "podman images --quiet --filter reference=localhost/minipc/*"
    assert on(places.mini, f"podman ps --all --quiet; {loaded}; ls /var/lib/minipc/images") == ""
    shown = places.minipc("service", "remove", "parkday")
    assert shown.code == 0, shown.output
    for line in ("database parkday, roles parkday, parkday_owner", "/srv/minipc/volumes/parkday", "kept;"):
        assert line in shown.output
    words = [BIN / "minipc", "service", "remove", "parkday", "--delete-data", "--inventory", "lab", "--host", NAME]
    done = subprocess.run(
        words, input="parkday\n", capture_output=True, text=True, env=os.environ | places.env, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert places.ask("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'parkday'") == "0"
    assert places.ask("postgres", "SELECT count(*) FROM pg_roles WHERE rolname ~ 'parkday'") == "0"
    assert on(places.mini, "ls -d /srv/minipc/volumes/parkday /var/lib/redis-queues/parkday 2>/dev/null || true") == ""
    restic = "restic --repository-file /etc/minipc/backups/restic.repository --cacert /etc/minipc/backups/offsite.crt"
    restic += " --password-file /etc/minipc/backups/restic.password --no-cache snapshots --json --tag removed:parkday"
    (snapshot,) = json.loads(on(places.mini, restic))
    assert snapshot["paths"] == ["/srv/minipc/volumes/parkday", "/var/lib/redis-queues/parkday"]
    assert "nothing is left of parkday" in places.minipc("service", "remove", "parkday").output
