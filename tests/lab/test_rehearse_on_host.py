"""`minipc rehearse --on HOST`: the checkout goes there, its report comes back. The host: sshd on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from minipc.core.paths import ROOT
from minipc.core.polling import wait_until
from rehearsal.on_host import FOLDER
from tests.lab.conftest import run

SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
SetEnv HOME={home}
ForceCommand cd {home} && exec bash -c "$SSH_ORIGINAL_COMMAND"
"""
CLIENT = """\
Host far
    HostName 127.0.0.1
    Port {port}
    User root
    IdentityFile {folder}/key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
"""


@pytest.fixture
def home(tmp_path: Path, lab_ready: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run an SSH server named `far` from its package, without installing it, and return the home of its account."""
    folder = tmp_path / "server"
    home = tmp_path / "home"
    for path in (folder, home):
        path.mkdir()
    subprocess.run(["apt-get", "-qq", "download", "openssh-server", "libwrap0"], cwd=folder, check=True, timeout=120)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder / "package"], check=True)
    (libraries,) = (folder / "package").glob("**/libwrap.so.0")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder, home=home))
    (folder / "ssh_config").write_text(CLIENT.format(port=port, folder=folder))
    key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    Path("/run/sshd").mkdir(exist_ok=True)
    # sshd gives its privileges up to an account that only its installation creates.
    (folder / "passwd").write_text(
        f"{Path('/etc/passwd').read_text()}sshd:x:65533:65533::/run/sshd:/usr/sbin/nologin\n"
    )
    script = (
        f"mount --bind {folder}/passwd /etc/passwd && exec {folder}/package/usr/sbin/sshd -D -e -f {folder}/sshd_config"
    )
    answered = partial(subprocess.run, ["ssh", "far", "true"], capture_output=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdout=log,
            stderr=log,
            env=os.environ | {"LD_LIBRARY_PATH": str(libraries.parent)},
        )
    try:
        assert wait_until(lambda: answered().returncode == 0, within_s=20, every_s=0.2), (folder / "log").read_text()
        yield home
    finally:
        server.kill()
        server.wait()


def test_the_checkout_goes_there_and_the_report_comes_back(home: Path):
    report = f"reports/from-far-{os.getpid()}/report.html"
    written_there = home / FOLDER / report
    written_there.parent.mkdir(parents=True)
    written_there.write_text("a report")
    later = time.time() + 3600
    os.utime(written_there, (later, later))
    try:
        done = run("minipc", "rehearse", "--on", "far", "--list-faults", timeout_s=400)
        assert done.code == 0, done.output
        assert "offsite-unreachable" in done.output, "the options were not passed on"
        assert report in done.output
        assert (ROOT / report).read_text() == "a report"
        there = home / FOLDER
        assert (there / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()
        assert not (there / "secrets").exists()
        assert (there / ".venv").is_dir(), "its programs were not installed"
    finally:
        (ROOT / report).unlink(missing_ok=True)
        (ROOT / report).parent.rmdir()


def test_a_host_that_does_not_answer_could_not_be_verified(home: Path):
    done = run("minipc", "rehearse", "--on", "nobody.invalid")
    assert done.code == 4
    assert "nobody.invalid: `ssh` failed; it says why above" in done.output
