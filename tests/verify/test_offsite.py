"""The off-site machine: what the mini PC's own credentials can do there, and what nobody's can. Seen from outside."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minipc import keys
from minipc.secrets import Secrets, load
from minipc.secrets.catalogue import REST_PASSWORD, SFTP_HOST_KEY, SFTP_KEY, TLS_KEY

HOME = "/srv/minipc-offsite"
COPY = "minipc-offsite-copy"


@pytest.fixture(scope="session")
def credentials(environment) -> Secrets:
    """What the mini PC has, and how the off-site machine proves itself."""
    return load(environment, [SFTP_KEY, SFTP_HOST_KEY, TLS_KEY, REST_PASSWORD])


@pytest.fixture(scope="session")
def ssh(public, settings, credentials, tmp_path_factory) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """ssh or sftp with the mini PC's key."""
    folder = tmp_path_factory.mktemp("offsite")
    key, known_hosts = folder / "key", folder / "known_hosts"
    key.touch(mode=0o600)
    key.write_text(credentials[SFTP_KEY].reveal())
    port = settings.offsite.sftp_port
    known_hosts.write_text(f"[{public.ipv4}]:{port} {keys.public_key(credentials[SFTP_HOST_KEY])}\n")

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
    """The status of a request to the restic server; the password travels in curl's standard input."""
    certificate = Path(tmp_path_factory.mktemp("tls")) / "offsite.crt"
    certificate.write_text(keys.certificate(credentials[TLS_KEY], settings.offsite.address or public.ipv4))

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
    done = ssh("sftp", stdin="cd /pgbackrest\npwd\n")
    assert "Remote working directory: /pgbackrest" in done.stdout, done.stderr


def test_the_account_can_write_and_remove_only_in_its_repository(ssh):
    done = ssh(
        "sftp", stdin="-mkdir /pgbackrest/.probe\n-rmdir /pgbackrest/.probe\n-mkdir /probe\n-rm /pgbackrest/../etc\n"
    )
    assert 'remote mkdir "/pgbackrest/.probe"' not in done.stderr
    assert 'mkdir "/probe": Permission denied' in done.stderr


def test_the_account_sees_nothing_else(ssh):
    assert ssh("sftp", stdin="ls -1 /\n").stdout.split("\n")[1:-1] == ["/pgbackrest"]
    for path in ("/etc/passwd", "../../../etc/passwd", "/srv", "/copies", "/pgbackrest/../../copies"):
        assert "not found" in ssh("sftp", stdin=f"ls {path}\n").stderr, path


@pytest.mark.parametrize("command", ["id", "sh -c id", "/usr/lib/openssh/sftp-server"])
def test_the_key_runs_no_command(ssh, command):
    assert "uid=" not in ssh("ssh", command).stdout


def test_the_key_forwards_nothing(ssh):
    done = ssh("ssh", "-W", "127.0.0.1:22")
    assert "SSH-2.0" not in done.stdout
    assert "administratively prohibited" in done.stderr


@pytest.mark.parametrize("user", ["root", "ops"])
def test_nobody_else_gets_in_there(ssh, user):
    assert "Permission denied" in ssh("sftp", user=user).stderr


def test_restic_may_add_but_not_delete_nor_replace(rest):
    assert rest("GET", "/minipc/config") in (200, 404)
    for path in ("/minipc/config", f"/minipc/snapshots/{'0' * 64}", f"/minipc/data/{'0' * 64}", "/minipc/"):
        assert rest("DELETE", path) in (403, 404, 405), path


def test_restic_asks_for_the_password(rest):
    assert rest("GET", "/minipc/config", password="") == 401
    assert rest("GET", "/minipc/config", password="wrong") == 401


def test_restic_keeps_to_its_own_repository(rest):
    assert rest("GET", "/another/config") in (401, 403)


def test_the_certificate_is_the_pinned_one(public, settings):
    done = public.run("curl", "-sS", "--max-time", "10", f"https://{public.ipv4}:{settings.offsite.rest_port}/")
    assert "certificate" in done.stderr, "the server must prove itself with a certificate of its own"


def test_copies_are_out_of_reach_and_taken_by_themselves(sh, units):
    assert sh(f"stat -c '%U %a' {HOME}/copies") == "root 700"
    assert sh(f"find {HOME}/copies -not -user root -not -path '*/aside-*' | head -3") == ""
    assert units(f"{COPY}.timer")["ActiveState"] == "active"
    assert units(f"{COPY}.timer")["Persistent"] == "yes"
    assert units(f"{COPY}.service")["Result"] == "success"


def test_a_copy_shares_no_file_with_the_repository(sh):
    """Hard links would let the account write into the copies."""
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
        (f"{HOME}/restic", "restic-rest-server restic-rest-server 700"),
    ],
)
def test_only_who_needs_it_reads_it(sh, path, expected):
    assert sh(f"stat -c '%U %G %a' {path}") == expected


@pytest.mark.parametrize("unit", ["minipc-sftp.service", "restic-rest-server.service", f"{COPY}.service"])
def test_units_are_confined(units, unit):
    properties = units(unit)
    assert properties["ProtectSystem"] == "strict"
    assert properties["NoNewPrivileges"] == "yes"
    assert properties["ProtectHome"] == "yes"
    assert "cap_sys_admin" not in properties.get("CapabilityBoundingSet", "")
    if not unit.startswith(COPY):
        assert (properties["ActiveState"], properties["UnitFileState"]) == ("active", "enabled")
