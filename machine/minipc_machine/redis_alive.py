"""Kill an instance of Redis that hangs, so that systemd starts it again: redis-alive.

Redis runs commands one after the other, so a script without an end stops it for every client, and for `systemctl stop`.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

from minipc_machine import schema
from minipc_machine.processes import run
from minipc_machine.program import EXIT_PASS, say

SETTINGS = Path("/etc/minipc/redis-alive.json")
ATTEMPTS, PAUSE_S, LIMIT_S = 3, 5, 5


@dataclass(frozen=True)
class Instance:
    """An instance: its unit, and its port on loopback."""

    unit: str
    port: int


@dataclass(frozen=True)
class AliveSettings:
    """Which instances are asked, and the login."""

    user: str
    password: str
    instances: list[Instance]


def main(_arguments: list[str]) -> int:
    """Ask each instance, and kill those that hang. Raises FailedError if systemd does not answer."""
    settings = schema.load(AliveSettings, SETTINGS)
    for instance in settings.instances:
        reasons = [trouble(settings, instance)]
        while reasons[-1] and len(reasons) < ATTEMPTS:
            time.sleep(PAUSE_S)
            reasons.append(trouble(settings, instance))
        if reasons[-1]:
            say(f"{instance.unit} is killed: {reasons[-1]}")
            run(["systemctl", "kill", "--signal=KILL", "--", instance.unit], timeout_s=30)
    return EXIT_PASS


def trouble(settings: AliveSettings, instance: Instance) -> str:
    """Return why an instance hangs; empty if it answers anything, or does not run."""
    try:
        with (
            socket.create_connection(("127.0.0.1", instance.port), LIMIT_S) as connection,
            connection.makefile("rb") as answers,
        ):
            # Before a login, a busy server refuses the client as a usual one does.
            for words in (["AUTH", settings.user, settings.password], ["PING"]):
                connection.sendall(_command(words))
                if answers.readline(1000).startswith(b"-BUSY"):
                    return "a script does not end"
    except TimeoutError:
        return "it does not answer"
    except OSError:
        pass
    return ""


def _command(words: list[str]) -> bytes:
    """Return a command in Redis's protocol (RESP), whatever characters it contains."""
    parts = [each.encode() for each in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
