"""Enrol a machine: check its SSH host key against a fingerprint that you got another way, then pin the key and a new
identity. Only a blank machine, or one that is already ours, can be enrolled.

The machine's own console shows the fingerprint: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Sequence
from typing import Any

from minipc.core.environment import Environment
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.pyinfra_ext.facts.machine import IDENTITY_FILE
from minipc.remote import ssh
from minipc.remote.host_keys import fingerprint_of
from minipc.remote.inventory import HostEntry
from minipc.remote.pins import Pin, known_hosts_file, read_pins, write_pin

SCAN_TIMEOUT_S = 20

# Data that someone would miss. A machine that has one of these is not blank.
_TRACES = (
    "/etc/minipc",
    "/var/lib/postgresql/*/*/PG_VERSION",
    "/var/lib/pgbackrest/*",
    "/var/lib/rancher/*",
    "/var/lib/docker/*",
    "/var/lib/mysql/*",
    "/srv/*",
)
FIND_TRACES = f"ls -d {' '.join(_TRACES)} 2>/dev/null || true"


def adopt(environment: Environment, entry: HostEntry, fingerprint: str) -> Pin:
    """Pin the host key and the identity of a machine, and write the identity to it.

    Args:
        environment: keeps the pin.
        entry: the machine, from the inventory.
        fingerprint: `SHA256:…` of its ed25519 host key, read on its console.

    Raises:
        RefusedError: the host key is another one, or the machine is neither blank nor ours.
        CouldNotVerifyError: the machine cannot be reached.
    """
    alias, data = entry
    host_key = scan(data["ssh_hostname"], data["ssh_port"])
    found = fingerprint_of(host_key)
    if found != fingerprint.strip():
        raise RefusedError(
            f"{alias}: the machine at {data['ssh_hostname']} shows host key {found}, expected {fingerprint}",
            "compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its console; nothing was changed",
        )
    known = read_pins(environment.pins_file).get(alias)
    expected = data.get("machine_identity") or (known.identity if known else None)
    identity = _enrol(alias, data, host_key, expected)
    adopted = Pin(host_key=host_key, identity=identity)
    write_pin(alias, adopted, environment.pins_file)
    return adopted


def scan(address: str, port: int) -> str:
    """Return the ed25519 host key that a machine shows, not compared with anything. Raises CouldNotVerifyError."""
    argv = ["ssh-keyscan", "-t", "ed25519", "-T", "5", "-p", str(port), address]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SCAN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        done = None
    lines = [line for line in (done.stdout.splitlines() if done else []) if not line.startswith("#")]
    if not lines:
        raise CouldNotVerifyError(
            f"no SSH host key (ed25519) from {address} port {port}", "check address, power and network, then try again"
        )
    return " ".join(lines[0].split()[1:3])


def refuse_traces(alias: str, traces: Sequence[str]) -> None:
    """Raise RefusedError if `FIND_TRACES` found something on a machine that should be blank."""
    if traces:
        raise RefusedError(
            f"{alias}: the machine is not blank: it has {', '.join(traces[:5])}",
            "only a blank machine can be adopted; reinstall it if nothing on it is needed. Nothing was changed",
        )


def _enrol(alias: str, data: dict[str, Any], host_key: str, expected: str | None) -> str:
    """Return the machine's identity; write a new one unless it already has the expected one."""
    pinned = data | {
        "ssh_known_hosts_file": str(
            known_hosts_file(alias, data["ssh_hostname"], data["ssh_port"], Pin(host_key=host_key))
        )
    }
    config = ssh.write_config([(alias, pinned)])
    try:
        current = ssh.run(config, alias, f"cat {IDENTITY_FILE} 2>/dev/null || true").stdout.decode().strip()
        if current and current == expected:
            return current
        if current:
            raise RefusedError(
                f"{alias}: the machine has the identity {current}; pinned is {expected or 'none'}",
                "it belongs to another inventory; if it may be erased, reinstall it. Nothing was changed",
            )
        refuse_traces(alias, ssh.run(config, alias, FIND_TRACES).stdout.decode().split())
        # A new machine is a new generation: it never inherits the identity of the one it replaces.
        identity = str(uuid.uuid4())
        script = (
            f"install -d -m 755 /etc/minipc && umask 022 && cat > {IDENTITY_FILE}.new && sync {IDENTITY_FILE}.new "
            f"&& mv {IDENTITY_FILE}.new {IDENTITY_FILE}"
        )
        done = ssh.run(config, alias, script, stdin=f"{identity}\n")
        if done.returncode:
            raise MinipcError(
                f"{alias}: the identity cannot be written: {done.stderr.decode().strip()}",
                'log in as root (user="root" in inventory/)',
            )
        return identity
    finally:
        ssh.close(config, [alias])
