"""Transfer files to and from the off-site host, in one connection of OpenSSH's `sftp`."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from minipc_machine.program import FailedError

KEY = Path("/etc/pgbackrest/sftp_key")
KNOWN_HOSTS = Path("/etc/pgbackrest/known_hosts")
OPTIONS = (
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "StrictHostKeyChecking=yes",
    "GlobalKnownHostsFile=/dev/null",
    f"UserKnownHostsFile={KNOWN_HOSTS}",
    "HostKeyAlgorithms=ssh-ed25519",
    f"IdentityFile={KEY}",
    "IdentitiesOnly=yes",
    "UpdateHostKeys=no",
)
# sftp prints each command before it runs it, and this answer when it has run all before it.
PROMPT, DONE = "sftp>", "SFTP protocol version"
AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--")


@dataclass(frozen=True)
class Server:
    """An SFTP server, which accepts the machine's key.

    Attributes:
        folder: where this machine may store files.
    """

    account: str
    address: str
    port: int
    folder: str


class Sftp:
    """A connection, for a `with` block. It works in the server's folder, as the account `postgres`.

    Paths in commands contain no spaces: nothing is quoted.
    """

    def __init__(self, server: Server) -> None:
        host = f"[{server.address}]" if ":" in server.address else server.address
        options = [f"-o{each}" for each in OPTIONS]
        argv = ["sftp", "-q", "-b", "-", "-F", "none", "-P", str(server.port), *options, f"{server.account}@{host}"]
        # A file: a pipe that nobody reads would be full one day.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_end`
        self._process = subprocess.Popen(
            [*AS_POSTGRES, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            errors="replace",
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        )
        self._folder = server.folder

    def __enter__(self) -> Self:
        try:
            self.run(f"cd {self._folder}")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(self, *commands: str) -> list[str]:
        """Run commands of `sftp` and return what they print.

        Raises:
            FailedError: a command failed, or the connection was lost; it cannot be used further.
        """
        assert self._process.stdin and self._process.stdout  # noqa: S101, PT018 - both are pipes
        try:
            self._process.stdin.write("".join(f"{command}\n" for command in (*commands, "version")))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith(DONE):
                return lines
            if not line.startswith(PROMPT):
                lines.append(line.strip())
        raise self._failure()

    def names(self) -> list[str]:
        """Return the names of the files in the folder. They come from the server: check them before use."""
        return [Path(line).name for line in self.run("ls -1")]

    def _failure(self) -> FailedError:
        self._process.wait()
        self._said.seek(0)
        said = " | ".join(self._said.read().decode(errors="replace").strip().splitlines()[-2:])
        text = "".join(each if each.isprintable() else "?" for each in said)[:300]
        return FailedError(f"sftp to the off-site host ended with {self._process.returncode}: {text}")

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()
