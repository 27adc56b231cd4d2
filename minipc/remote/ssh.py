"""OpenSSH for what pyinfra doesn't do: verification, adoption, a person's shell. One configuration for all of them.

One master connection is shared (ControlMaster and ControlPath): without it every check of a verification would
open a new connection, 12 times slower.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minipc.core.errors import CouldNotVerifyError, RefusedError
from minipc.core.files import write_atomic
from minipc.core.paths import state_dir

CONNECT_TIMEOUT_S = 10
# Exit code of ssh itself when it could not connect or log in; anything else is the remote command's.
FAILED = 255


def control_directory() -> Path:
    """Return a private directory with a short path: a socket's path may have 104 bytes at most.

    Raises:
        RefusedError: somebody else owns that directory.
    """
    path = Path(tempfile.gettempdir()) / f"minipc-ssh-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or path.is_symlink():
        raise RefusedError(f"{path} belongs to another user or is open to others", f"remove it: `rm -r {path}`")
    return path


def write_config(hosts: Iterable[tuple[str, dict[str, Any]]]) -> Path:
    """Write the ssh_config for these inventory entries; it is used as `ssh -F FILE ALIAS` and by testinfra.

    Returns:
        The file. It is named after the machines and their addresses, and replaced atomically, so that parallel runs do
        not disturb each other.
    """
    entries = list(hosts)
    text = "".join(_stanza(alias, data) for alias, data in entries)
    names = [f"{alias}@{data['ssh_hostname']}" for alias, data in entries]
    path = state_dir("ssh") / "+".join(["config", *names])
    # Every question to a machine comes here: flushing the same text to disk each time would cost milliseconds.
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text.encode())
    return path


def _stanza(alias: str, data: dict[str, Any]) -> str:
    options = {
        "HostName": data["ssh_hostname"],
        "Port": data["ssh_port"],
        "User": data["ssh_user"],
        "UserKnownHostsFile": data["ssh_known_hosts_file"],
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "ConnectTimeout": CONNECT_TIMEOUT_S,
        "ServerAliveInterval": 15,
        "ControlMaster": "auto",
        "ControlPath": control_directory() / "%C",
        "ControlPersist": 60,
        "LogLevel": "ERROR",
    }
    if key := data.get("ssh_key"):
        options |= {"IdentityFile": key, "IdentitiesOnly": "yes"}
    return f"Host {alias}\n" + "".join(f"    {name} {value}\n" for name, value in options.items())


def run(
    config: Path, alias: str, command: str, *, stdin: str | bytes | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command on the machine and wait for it.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or the command takes longer than `timeout_s`.
    """
    data = stdin.encode() if isinstance(stdin, str) else stdin
    argv = ["ssh", "-F", str(config), alias, "--", command]
    try:
        # A pipe inherited by the master connection would stay open: stderr goes to a file.
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                argv, input=data if data is not None else b"", stdout=subprocess.PIPE, stderr=errors, timeout=timeout_s
            )
            errors.seek(0)
            done.stderr = errors.read()
    except subprocess.TimeoutExpired:
        raise CouldNotVerifyError(
            f"{alias}: no answer within {timeout_s:.0f} s to: {command[:80]}",
            f"try it manually: `{' '.join(argv[:4])}`",
        ) from None
    if done.returncode == FAILED:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise CouldNotVerifyError(
            f"{alias}: SSH failed: {reason[-1] if reason else 'no reason given'}",
            "check that the machine is up, the address in inventory/ and the pinned host key (`minipc doctor`)",
        )
    return done


def close(config: Path, aliases: Sequence[str]) -> None:
    """End the shared connections, if there are any."""
    for alias in aliases:
        subprocess.run(
            ["ssh", "-F", str(config), "-O", "exit", alias],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
