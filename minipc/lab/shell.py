"""Running the controller's own programs: one way, with errors that say which command failed and how."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from minipc.errors import MinipcError
from minipc.paths import ROOT

_MEND = "`minipc doctor` says what the lab lacks, `minipc lab down --all` mends what a crash left"
PASSED_ON = ("PATH", "HOME", "MINIPC_CACHE_DIR", "MINIPC_STATE_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME")


# Descriptors that every program run here keeps open: a lock is then held until the program has ended, even when we
# are killed meanwhile.
kept_open: set[int] = set()


def say(text: str) -> None:
    """Progress for a human: on stderr, so that stdout stays for results."""
    print(text, file=sys.stderr, flush=True)


def call(*argv: str, stdin: str = "", timeout: float = 60) -> str:
    """Run a program to its end and return its stdout. Raises MinipcError with its stderr when it fails."""
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
        raise MinipcError(f"`{shlex.join(argv)}` failed: {error}", _MEND) from error
    if done.returncode != 0:
        raise MinipcError(f"`{shlex.join(argv)}` failed ({done.returncode}): {done.stderr.strip()}", _MEND)
    return done.stdout


def succeeds(*argv: str, timeout: float = 60) -> bool:
    """Whether a program exits 0; its output is thrown away."""
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
    """What helper processes may see: no secrets that happen to be in the caller's environment."""
    passed_on = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    path = passed_on.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    return {**passed_on, "PATH": path, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}


def spawn_detached(argv: Sequence[str], *, log: Path, pid_file: Path, prepare: str = "") -> int:
    """Start a process in a session of its own, adopted by init. Returns its pid.

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
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if pid_file.exists():
            return int(pid_file.read_text())
        time.sleep(0.002)
    raise MinipcError(
        f"a detached process did not start: {pid_file} was not written", f"the logs beside it say why; {_MEND}"
    )
