"""Let one operator at a time change a machine.

A shell on the machine holds the lock for as long as its SSH session lasts. So a controller that crashes leaves no lock
behind, and neither does a machine that reboots.
"""

from __future__ import annotations

import getpass
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from minipc.core.errors import CouldNotVerifyError, RefusedError
from minipc.core.formatting import duration, one_line
from minipc.remote import ssh
from minipc.remote.inventory import Target
from minipc.remote.queries import on, reason

FILE = "/run/minipc-operator.lock"
# The shell that holds the lock must be the only process with the file open, so that it can be ended.
_TAKE = """
umask 077
exec 9>>FILE || exit 1
flock -w 5 9 || { since=$(sed -n 2p FILE); echo "taken $(($(date +%s) - ${since:-0})) $(sed -n 3p FILE)"; exit; }
printf '%s\\n' $$ "$(date +%s)" WHO > FILE
echo held
cat >/dev/null 9>&-
: > FILE
"""
_END = """
[ -e FILE ] || exit 0
exec 9>>FILE
flock -n 9 && exit
sed -n 3p FILE
kill -KILL "$(sed -n 1p FILE)"
flock -w 5 9
"""
_held: set[str] = set()


@contextmanager
def held(target: Target, command: str) -> Iterator[None]:
    """Hold the lock of a machine; a block inside another one of the same process finds it held.

    Args:
        command: what the operator runs, for the message to others.

    Raises:
        RefusedError: somebody else holds it; nothing was changed.
        CouldNotVerifyError: the machine cannot be reached, or the lock cannot be taken.
    """
    if target.alias in _held:
        yield
        return
    who = f"{getpass.getuser()} on {socket.gethostname()}: {command}"
    # Not through the shared connection, which may end earlier. Not ended by Ctrl-C: what was begun is ended first.
    config = ssh.write_config([(target.alias, target.data)])
    argv = [
        "ssh",
        "-F",
        str(config),
        "-o",
        "ControlPath=none",
        target.alias,
        "--",
        _TAKE.replace("FILE", FILE).replace("WHO", shlex.quote(who)),
    ]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _demand(target, process)
        _held.add(target.alias)
        yield
    finally:
        _held.discard(target.alias)
        # The shell there ends when its input ends.
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _demand(target: Target, process: subprocess.Popen[str]) -> None:
    """Wait for the answer. Raise RefusedError if somebody else holds the lock."""
    answer = process.stdout.readline().strip() if process.stdout else ""
    state, _, rest = answer.partition(" ")
    if state == "held":
        return
    if state == "taken":
        seconds, _, who = rest.partition(" ")
        age = duration(float(seconds)) if seconds.isdecimal() else "an unknown time"
        raise RefusedError(
            f"{target.alias}: another operator has been changing this machine for {age}: {one_line(who)}",
            f"wait until that ends. If it hangs: `minipc unlock --host {target.alias}`. Nothing was changed",
        )
    _, errors = process.communicate()
    raise CouldNotVerifyError(
        f"{target.alias}: the lock for changes cannot be taken: {reason(errors)}",
        "check the connection with `minipc doctor`",
    )


def end(target: Target) -> str:
    """End the lock that somebody holds, and return who that was; empty if nobody did. Raises CouldNotVerifyError."""
    return one_line(on(target, _END.replace("FILE", FILE)))
