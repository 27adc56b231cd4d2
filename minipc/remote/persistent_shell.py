"""One remote shell that answers one command after another, and testinfra's backend that uses it.

A command over a shared SSH connection still starts an `ssh` here and a session there, about 20 ms together; a shell
that stays open takes 2 ms. A verification asks more than a hundred times.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import subprocess
import threading
import time
from pathlib import Path

from testinfra.backend.base import CommandResult
from testinfra.backend.ssh import SshBackend

from minipc.core.errors import CouldNotVerifyError

_READ_BYTES = 65536
# More than a line with the mark has.
_TAIL_BYTES = 64


class RemoteShell:
    """A shell on a machine. Opened with the first command, and again after a failure. Threads take turns."""

    def __init__(self, config: Path, alias: str) -> None:
        self._config = config
        self._alias = alias
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def run(self, command: str, timeout_s: float = 600) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the login shell of the machine's user, without input, and wait for it.

        Raises:
            CouldNotVerifyError: the connection ends, or the command takes longer than `timeout_s`.
        """
        with self._turn:
            return self._run(command, timeout_s)

    def _run(self, command: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        process = self._opened()
        mark = secrets.token_hex(16)
        line = f'"${{SHELL:-sh}}" -c {shlex.quote(command)} </dev/null; {_print_mark(mark)}\n'
        try:
            _write(process, line.encode())
            (output, code), (errors, _) = _read_up_to(process, b"\n" + mark.encode(), time.monotonic() + timeout_s)
        except (OSError, EOFError) as problem:
            self.close()
            why = f"no answer within {timeout_s:.0f} s" if isinstance(problem, TimeoutError) else "the connection ended"
            raise CouldNotVerifyError(
                f"{self._alias}: {why}: {command[:80]}", "check that the machine is up, then run it again"
            ) from None
        return subprocess.CompletedProcess(command, int(code), output, errors)

    def close(self) -> None:
        """End the shell. Does not wait for what still runs in it on the machine."""
        if process := self._process:
            self._process = None
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()

    def _opened(self) -> subprocess.Popen[bytes]:
        if not self._process:
            pipe = subprocess.PIPE
            # Never the master of the shared connection: that one outlives us, and would keep our pipes open.
            argv = ["ssh", "-F", str(self._config), "-o", "ControlMaster=no", self._alias, "--", "exec sh"]
            self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        return self._process


def _print_mark(mark: str) -> str:
    """Shell code that ends both streams of a command with a line of their own; stdout's also has the exit code."""
    return f"code=$?; printf '\\n{mark} %s\\n' $code; printf '\\n{mark} %s\\n' $code >&2"


def _write(process: subprocess.Popen[bytes], line: bytes) -> None:
    if process.stdin:
        view = memoryview(line)
        while view:
            view = view[process.stdin.write(view) :]


def _read_up_to(
    process: subprocess.Popen[bytes], mark: bytes, deadline: float
) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """Read stdout, stderr and what follows the mark. Raises EOFError or TimeoutError."""
    streams = [stream.fileno() for stream in (process.stdout, process.stderr) if stream]
    found = {stream: bytearray() for stream in streams}
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                data = os.read(key.fd, _READ_BYTES)
                if not data:
                    raise EOFError
                found[key.fd] += data
                if found[key.fd].endswith(b"\n") and mark in found[key.fd][-_TAIL_BYTES:]:
                    selector.unregister(key.fd)
    first, second = (bytes(text).rpartition(mark) for text in found.values())
    return (first[0], first[2]), (second[0], second[2])


class ShellBackend(SshBackend):  # type: ignore[misc] # testinfra comes without types
    """testinfra's `ssh://`, over one shell."""

    def __init__(self, config: Path, alias: str) -> None:
        super().__init__(alias, ssh_config=str(config))
        self.shell = RemoteShell(config, alias)

    def run_ssh(self, command: str) -> CommandResult:
        done = self.shell.run(command)
        return self.result(done.returncode, self.encode(command), done.stdout, done.stderr)
