"""Run programs on this computer, with errors that name the failed command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.paths import ROOT
from minipc.core.polling import wait_until

_NEXT_STEP = "`minipc doctor` shows what this computer lacks, `minipc lab down --all` removes what a crash left behind"
# How this computer reaches the internet, and which certificate authorities it trusts.
NETWORK = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
PASSED_ON = ("PATH", "HOME", "MINIPC_CACHE_DIR", "MINIPC_STATE_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME")


# Descriptors that every program started here keeps open: a lock is then held until the program ends, even if we are
# killed first.
kept_open: set[int] = set()


def say(text: str) -> None:
    """Print progress for a person, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def call(*argv: str, stdin: str = "", timeout: float = 60, next_step: str = _NEXT_STEP) -> str:
    """Run a program to its end and return its stdout.

    Args:
        timeout: longest run time, seconds.
        next_step: what the operator does if it fails.

    Raises:
        MinipcError: it failed, with its stderr, or took too long.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=clean_environment(),
            pass_fds=tuple(kept_open),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MinipcError(f"`{shlex.join(argv)}` failed: {error}", next_step) from error
    if done.returncode != 0:
        raise MinipcError(f"`{shlex.join(argv)}` failed ({done.returncode}): {done.stderr.strip()}", next_step)
    return done.stdout


def succeeds(*argv: str, timeout: float = 60) -> bool:
    """Return whether a program exits with 0; discard its output."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=timeout,
        env=clean_environment(),
        pass_fds=tuple(kept_open),
    )
    return done.returncode == 0


def clean_environment() -> dict[str, str]:
    """Return the environment variables of helper processes: no secrets from the caller's environment."""
    passed_on = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    path = passed_on.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    return {**passed_on, "PATH": path, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}


def network_environment() -> dict[str, str]:
    """Return the environment variables of helper processes that use the internet."""
    return clean_environment() | {name: os.environ[name] for name in NETWORK if name in os.environ}


def spawn_detached(argv: Sequence[str], *, log: Path, pid_file: Path, prepare: str = "") -> int:
    """Start a process in a separate session, adopted by init, and return its pid.

    Args:
        pid_file: written by the process that then becomes `argv`.
        prepare: shell code it runs before.
    """
    pid_file.unlink(missing_ok=True)
    become = f"set -e; {prepare}echo $$ > {shlex.quote(str(pid_file))}.new; mv -T {shlex.quote(str(pid_file))}.new "
    become += f'{shlex.quote(str(pid_file))}; exec "$@"'
    with log.open("ab") as output:
        subprocess.run(
            ["setsid", "--fork", "--", "sh", "-c", become, "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=clean_environment(),
            cwd="/",
            check=True,
            timeout=10,
        )
    return _wait_for_pid(pid_file)


def _wait_for_pid(pid_file: Path) -> int:
    if not wait_until(pid_file.exists, within_s=10, every_s=0.002):
        raise MinipcError(
            f"a detached process did not start: {pid_file} was not written", f"read the logs next to it; {_NEXT_STEP}"
        )
    return int(pid_file.read_text())
