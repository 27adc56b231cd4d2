"""SSH to machines: one key, one known_hosts and one ssh_config for pyinfra, testinfra and people.

Host keys are generated before a machine boots, and pinned. Nothing is trusted on first use.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.files import write_atomic
from minipc.core.process import succeeds
from minipc.remote.host_keys import generate_key
from rehearsal.lab.machine import Machine, lab_dir, load_all
from rehearsal.lab.network import RUN_DIR

# Short: the path of a Unix socket has at most 107 characters.
CONTROL_DIR = RUN_DIR / "ssh"


def ssh_config_path() -> Path:
    return lab_dir() / "ssh_config"


def known_hosts_path() -> Path:
    return lab_dir() / "known_hosts"


def client_key() -> Path:
    """Return the lab's private key, which machines accept for root. It is created on first use."""
    key = lab_dir() / "id_ed25519"
    if not key.exists():
        key.with_suffix(".pub").unlink(missing_ok=True)
        generate_key(key, "minipc-lab")
    return key


def client_public_key() -> str:
    return client_key().with_suffix(".pub").read_text().strip()


def write_client_files() -> None:
    """Write ssh_config and known_hosts for the existing machines. Call it with the lab's lock held."""
    machines = load_all()
    CONTROL_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(ssh_config_path(), render_ssh_config(machines, client_key(), known_hosts_path()).encode())
    write_atomic(known_hosts_path(), render_known_hosts(machines).encode())


def remove_client_files() -> None:
    """Remove the files after the last machine. The key stays."""
    ssh_config_path().unlink(missing_ok=True)
    known_hosts_path().unlink(missing_ok=True)
    shutil.rmtree(CONTROL_DIR, ignore_errors=True)


def render_ssh_config(machines: Iterable[Machine], key: Path, known_hosts: Path) -> str:
    hosts = "".join(
        f"Host {machine.name}\n  HostName {machine.ssh_host}\n  Port {machine.ssh_port}\n  User {machine.ssh_user}\n\n"
        for machine in machines
    )
    return f"""\
# Written by `minipc lab`; use it as: ssh -F THIS_FILE MACHINE
{hosts}Host *
  IdentityFile "{key}"
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile "{known_hosts}"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  UpdateHostKeys no
  HostKeyAlgorithms ssh-ed25519
  BatchMode yes
  ConnectTimeout 10
  ServerAliveInterval 5
  ServerAliveCountMax 3
  ControlMaster auto
  ControlPath {CONTROL_DIR}/%n-%r
  ControlPersist 60
"""


def render_known_hosts(machines: Iterable[Machine]) -> str:
    """Render one line per machine, for its alias and its address (clients look up either)."""
    lines = []
    for machine in machines:
        names = [machine.name, machine.ssh_host]
        if machine.ssh_port != 22:
            names = [f"[{name}]:{machine.ssh_port}" for name in names]
        lines.append(f"{','.join(names)} {machine.host_key}\n")
    return "".join(lines)


def ssh_command(machine: Machine, *argv: str) -> list[str]:
    """Return the command that runs `argv` (or a shell) on the machine."""
    return ["ssh", "-F", str(ssh_config_path()), machine.name, *(["--", shlex.join(argv)] if argv else [])]


def run(
    machine: Machine,
    argv: Sequence[str],
    *,
    check: bool = True,
    stdin: str = "",
    timeout: float = 120,
    connect_timeout: int = 10,
) -> subprocess.CompletedProcess[str]:
    """Run a program on the machine as root.

    Args:
        argv: program and arguments; a shell line is `["sh", "-c", line]`.
        timeout: seconds for all of it.
        connect_timeout: seconds for the connection.

    Raises:
        MinipcError: it failed (with `check`), or did not end within the time limit.
    """
    program, *arguments = ssh_command(machine, *argv)
    next_step = (
        f"examine the machine: `minipc lab ssh {machine.name}`, or `minipc lab console {machine.name}` without SSH"
    )
    # ssh must not outlive this process: if the machine disappears too, ssh would wait for a long time.
    command = ["setpriv", "--pdeathsig", "KILL", program, "-o", f"ConnectTimeout={connect_timeout}", *arguments]
    try:
        # The output may contain arbitrary bytes: a journal contains what clients sent.
        done = subprocess.run(
            command, input=stdin, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise MinipcError(
            f"{machine.name}: `{shlex.join(argv)}` did not end within {timeout:.0f} s", next_step
        ) from error
    if check and done.returncode != 0:
        raise MinipcError(
            f"{machine.name}: `{shlex.join(argv)}` failed ({done.returncode}): {done.stderr.strip()}", next_step
        )
    return done


def close_connections(name: str) -> None:
    """Close the shared connections to a machine, so that none outlives it."""
    for control in CONTROL_DIR.glob(f"{name}-*"):
        if control.name.rpartition("-")[0] == name:
            succeeds("ssh", "-F", "/dev/null", "-o", f"ControlPath={control}", "-O", "exit", "-q", name, timeout=10)
            control.unlink(missing_ok=True)
