"""Run a rehearsal on a Debian machine over SSH, for a computer that is not Debian or where this user is not root.

minipc rehearse --on HOST
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from typing import IO

import click

from minipc.core.errors import EXIT_COULD_NOT_VERIFY, ConfigError, CouldNotVerifyError
from minipc.core.git import git, pin_head
from minipc.core.paths import ROOT
from minipc.core.variables import COMMIT_VARIABLE, SERVICES_VARIABLE

FOLDER = "minipc-rehearsal"
SSH_FAILED = 255
# The environment of an earlier rehearsal and its reports stay.
RECEIVE = f"""set -e
mkdir -p {FOLDER}
cd {FOLDER}
find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name reports -exec rm -rf {{}} +
tar -xz
touch .received"""
SEND = f"cd {FOLDER} && [ -d reports ] && find reports -type f -newer .received -print0 | tar -cz --null -T -"


def rehearse_on(host: str, words: Sequence[str]) -> int:
    """Copy this checkout to a machine, rehearse there, bring the record and the report back, and return the exit code.

    Args:
        host: as `ssh` takes it: an alias of its configuration, or user@address.
        words: the other options of `minipc rehearse`.

    Raises:
        ConfigError: it is not the name of a host, or this is not a Git checkout.
        CouldNotVerifyError: the machine cannot be reached.
    """
    if host.startswith("-"):
        raise ConfigError(f"{host!r} is not the name of a host", "give it as `ssh` takes it, such as root@lab.lan")
    with tempfile.TemporaryFile() as archive:
        _pack(archive)
        archive.seek(0)
        _ssh(host, RECEIVE, stdin=archive)
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    code = subprocess.run(["ssh", *terminal, host, _script(words)]).returncode
    with tempfile.TemporaryFile() as archive:
        _ssh(host, SEND, stdout=archive)
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            tar.extractall(ROOT, filter="data")
            click.echo(f"copied here: {', '.join(sorted(tar.getnames())) or 'nothing, because it wrote no record'}")
    return EXIT_COULD_NOT_VERIFY if code == SSH_FAILED else code


def _pack(archive: IO[bytes]) -> None:
    """Write the files of the checkout into an archive: committed or not, without ignored files and without secrets."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
        for name in sorted(set(listed)):
            path = ROOT / name
            if name and not name.startswith("secrets/") and (path.is_file() or path.is_symlink()):
                tar.add(path, name)


def _script(words: Sequence[str]) -> str:
    pin_head()
    kept = {name: os.environ[name] for name in (COMMIT_VARIABLE, SERVICES_VARIABLE) if name in os.environ}
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in kept.items())
    return f"""set -e
cd {FOLDER}
[ "$(id -u)" = 0 ] && as_root= || as_root=sudo
command -v make git >/dev/null || $as_root apt-get install -y -qq make git
$as_root make setup
exec $as_root env {given} .venv/bin/minipc rehearse {shlex.join(words)}"""


def _ssh(host: str, script: str, stdin: IO[bytes] | int = subprocess.DEVNULL, stdout: IO[bytes] | None = None) -> None:
    if subprocess.run(["ssh", host, script], stdin=stdin, stdout=stdout).returncode:
        raise CouldNotVerifyError(f"{host}: `ssh` failed; it says why above", f"try it by hand: ssh {host} true")
