"""Checks of the off-site host from outside: what the mini PC's credentials can do there, and what they cannot."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minipc.secrets import Secrets, ed25519, load
from minipc.secrets.catalogue import REST_PASSWORD, SFTP_HOST_KEY, SFTP_KEY, TLS_KEY

HOME = "/srv/minipc-offsite"
COPY = "minipc-offsite-copy"


@pytest.fixture(scope="session")
def credentials(environment) -> Secrets:
    """Return the mini PC's credentials and the keys by which the off-site host proves its identity."""
    return load(environment.name, [SFTP_KEY, SFTP_HOST_KEY, TLS_KEY, REST_PASSWORD])


@pytest.fixture(scope="session")
def ssh(public, settings, credentials, tmp_path_factory) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return a function that runs ssh or sftp with the mini PC's key."""
    folder = tmp_path_factory.mktemp("offsite")
    key, known_hosts = folder / "key", folder / "known_hosts"
    key.touch(mode=0o600)
    key.write_text(credentials[SFTP_KEY].reveal())
    port = settings.offsite.sftp_port
    known_hosts.write_text(f"[{public.ipv4}]:{port} {ed25519.public_key(credentials[SFTP_HOST_KEY])}\n")

    def run(
        program: str, *arguments: str, user: str = "minipc-sftp", stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        options = [f"-oPort={port}", f"-oIdentityFile={key}", f"-oUserKnownHostsFile={known_hosts}", "-oBatchMode=yes"]
        options += ["-oIdentitiesOnly=yes", "-oStrictHostKeyChecking=yes", "-F/dev/null"]
        return public.run(program, *options, f"{user}@{public.ipv4}", *arguments, stdin=stdin)

    yield run
    key.unlink()


@pytest.fixture(scope="session")
def rest(public, settings, credentials, tmp_path_factory) -> Callable[..., int]:
    """Return a function that sends a request to the restic server and returns the HTTP status.

    The password is passed to curl on standard input.
    """
    certificate = Path(tmp_path_factory.mktemp("tls")) / "offsite.crt"
    certificate.write_text(ed25519.certificate(credentials[TLS_KEY], settings.offsite.address or public.ipv4))

    def request(method: str, path: str, password: str | None = None) -> int:
        secret = credentials[REST_PASSWORD].reveal() if password is None else password
        config = f'user = "minipc:{secret}"\n' if secret else ""
        url = f"https://{public.ipv4}:{settings.offsite.rest_port}{path}"
        argv = [
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--noproxy",
            "*",
            "--max-time",
            "15",
            "--cacert",
            str(certificate),
            "-X",
            method,
        ]
        done = public.run(*argv, "--config", "-", url, stdin=config)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return request


def test_the_key_opens_sftp(ssh):
    """The mini PC's key can log in to the off-site host by SFTP."""
    done = ssh("sftp", stdin="cd /pgbackrest\npwd\n")
    assert "Remote working directory: /pgbackrest" in done.stdout, done.stderr


def test_the_account_can_write_and_remove_only_in_its_repository(ssh):
    """The backup account can write only in its own repository."""
    done = ssh(
        "sftp", stdin="-mkdir /pgbackrest/.probe\n-rmdir /pgbackrest/.probe\n-mkdir /probe\n-rm /pgbackrest/../etc\n"
    )
    assert 'remote mkdir "/pgbackrest/.probe"' not in done.stderr
    assert 'mkdir "/probe": Permission denied' in done.stderr


def test_the_account_sees_nothing_else(ssh):
    """The backup account sees nothing outside its repository."""
    assert ssh("sftp", stdin="ls -1 /\n").stdout.split("\n")[1:-1] == ["/pgbackrest", "/wal"]
    for path in ("/etc/passwd", "../../../etc/passwd", "/srv", "/copies", "/pgbackrest/../../copies"):
        assert "not found" in ssh("sftp", stdin=f"ls {path}\n").stderr, path


@pytest.mark.parametrize("command", ["id", "sh -c id", "/usr/lib/openssh/sftp-server"])
def test_the_key_runs_no_command(ssh, command):
    """The mini PC's key cannot run a command on the off-site host."""
    assert "uid=" not in ssh("ssh", command).stdout


def test_the_key_forwards_nothing(ssh):
    """The mini PC's key cannot forward connections through the off-site host."""
    done = ssh("ssh", "-W", "127.0.0.1:22")
    assert "SSH-2.0" not in done.stdout
    assert "administratively prohibited" in done.stderr


@pytest.mark.parametrize("user", ["root", "ops"])
def test_nobody_else_gets_in_there(ssh, user):
    """No other account can log in to the backup server."""
    assert "Permission denied" in ssh("sftp", user=user).stderr


def test_restic_may_add_but_not_delete_nor_replace(rest):
    """The restic server lets the mini PC add backups, but not delete or replace them."""
    assert rest("GET", "/minipc/config") in (200, 404)
    for path in ("/minipc/config", f"/minipc/snapshots/{'0' * 64}", f"/minipc/data/{'0' * 64}", "/minipc/"):
        assert rest("DELETE", path) in (403, 404, 405), path


def test_restic_asks_for_the_password(rest):
    """The restic server refuses requests without the right password."""
    assert rest("GET", "/minipc/config", password="") == 401
    assert rest("GET", "/minipc/config", password="wrong") == 401


def test_restic_keeps_to_its_own_repository(rest):
    """The restic server gives access to one repository only."""
    assert rest("GET", "/another/config") in (401, 403)


def test_the_certificate_is_the_pinned_one(public, settings):
    """The restic server presents the pinned certificate."""
    done = public.run("curl", "-sS", "--max-time", "10", f"https://{public.ipv4}:{settings.offsite.rest_port}/")
    assert "certificate" in done.stderr, "the server must prove itself with a certificate of its own"


def test_copies_are_out_of_reach_and_taken_by_themselves(sh, units):
    """Copies of the backups are taken automatically, and only root can change them."""
    assert sh(f"stat -c '%U %a' {HOME}/copies") == "root 700"
    assert sh(f"find {HOME}/copies -not -user root -not -path '*/aside-*' | head -3") == ""
    assert units(f"{COPY}.timer")["ActiveState"] == "active"
    assert units(f"{COPY}.timer")["Persistent"] == "yes"
    assert units(f"{COPY}.service")["Result"] == "success"


def test_a_copy_shares_no_file_with_the_repository(sh):
    """A copy shares no file with the repository.

    Hard links would let the backup account write into the copies.
    """
    inodes = [set(sh(f"find {HOME}/{folder} -type f -printf '%i\\n'").split()) for folder in ("sftp", "copies")]
    assert not inodes[0] & inodes[1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/minipc/offsite/host_key", "root root 600"),
        ("/etc/minipc/offsite/tls.key", "root restic-rest-server 640"),
        ("/etc/minipc/offsite/htpasswd", "root restic-rest-server 640"),
        (f"{HOME}/sftp", "root root 755"),
        (f"{HOME}/sftp/pgbackrest", "minipc-sftp minipc-sftp 700"),
        (f"{HOME}/sftp/wal", "minipc-sftp minipc-sftp 700"),
        (f"{HOME}/restic", "restic-rest-server restic-rest-server 700"),
    ],
)
def test_only_who_needs_it_reads_it(sh, path, expected):
    """The file has the expected owner, group and mode."""
    assert sh(f"stat -c '%U %G %a' {path}") == expected


@pytest.mark.parametrize("unit", ["minipc-sftp.service", "restic-rest-server.service", f"{COPY}.service"])
def test_units_are_confined(units, unit):
    """The unit runs with few privileges."""
    properties = units(unit)
    assert properties["ProtectSystem"] == "strict"
    assert properties["NoNewPrivileges"] == "yes"
    assert properties["ProtectHome"] == "yes"
    assert "cap_sys_admin" not in properties.get("CapabilityBoundingSet", "")
    if not unit.startswith(COPY):
        assert (properties["ActiveState"], properties["UnitFileState"]) == ("active", "enabled")


def test_the_accounts_of_the_backups_cannot_fill_the_disk_for_the_system(sh):
    """Backups leave at least 256 MB of the off-site disk to the system."""
    folder = "/srv/minipc-offsite"
    if sh(f"stat -c %d {folder}") != sh("stat -c %d /var"):
        return
    size, free, available = map(int, sh(f"stat -f -c '%S %f %a' {folder}").split())
    assert available == 0 or (free - available) * size >= 256 * 2**20, "reserve more for root: tune2fs -m 5 DEVICE"
