"""Enrols a machine: its SSH host key is checked against a fingerprint that you got another way, then both it and a
fresh identity are pinned. Only a blank machine, or one that is already ours, can be enrolled.

The fingerprint is on the machine's own screen: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

from minipc import ssh
from minipc.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.facts.machine import IDENTITY_FILE
from minipc.inventory import HostEntry
from minipc.pins import Pin, known_hosts_file, read_pins, write_pin

SCAN_TIMEOUT_S = 20

# Anything that a converge or a person would miss. A machine that has one of these isn't blank.
_TRACES = (
    "/etc/minipc",
    "/var/lib/postgresql/*/*/PG_VERSION",
    "/var/lib/pgbackrest/*",
    "/var/lib/rancher/*",
    "/var/lib/docker/*",
    "/var/lib/mysql/*",
    "/srv/*",
)


def adopt(entry: HostEntry, fingerprint: str, pin: Callable[[str, Pin], None] = write_pin) -> Pin:
    """Pins the host key and the identity of a machine, and writes the identity to it.

    Args:
        entry: the machine, from the inventory.
        fingerprint: `SHA256:…` of its ed25519 host key, read on its console.
        pin: where the pin is kept.

    Raises:
        RefusedError: another host key, or the machine is neither blank nor ours.
        CouldNotVerifyError: the machine can't be reached.
    """
    alias, data = entry
    host_key = _scan(data["ssh_hostname"], data["ssh_port"])
    found = fingerprint_of(host_key)
    if found != fingerprint.strip():
        raise RefusedError(
            f"{alias}: the machine at {data['ssh_hostname']} shows host key {found}, expected {fingerprint}",
            "compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its own screen; nothing was changed",
        )
    known = read_pins().get(alias)
    expected = data.get("machine_identity") or (known.identity if known else None)
    identity = _enrol(alias, data, host_key, expected)
    adopted = Pin(host_key=host_key, identity=identity)
    pin(alias, adopted)
    return adopted


def fingerprint_of(host_key: str) -> str:
    """`SHA256:…` of a key as in known_hosts (`ssh-ed25519 AAAA…`), the way OpenSSH writes it."""
    digest = hashlib.sha256(base64.b64decode(host_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _scan(address: str, port: int) -> str:
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


def _enrol(alias: str, data: dict[str, Any], host_key: str, expected: str | None) -> str:
    """Writes the identity unless the machine already has the expected one; returns it."""
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
                "it belongs to another inventory; if it may be wiped, install it anew. Nothing was changed",
            )
        traces = ssh.run(config, alias, f"ls -d {' '.join(_TRACES)} 2>/dev/null || true").stdout.decode().split()
        if traces:
            raise RefusedError(
                f"{alias}: the machine is not blank: it has {', '.join(traces[:5])}",
                "only a blank machine can be adopted; install it anew if nothing on it is needed. Nothing was changed",
            )
        # A new machine is a new generation: it never inherits the identity of the one it replaces.
        identity = str(uuid.uuid4())
        script = (
            f"install -d -m 755 /etc/minipc && umask 022 && cat > {IDENTITY_FILE}.new && sync {IDENTITY_FILE}.new "
            f"&& mv {IDENTITY_FILE}.new {IDENTITY_FILE}"
        )
        done = ssh.run(config, alias, script, stdin=f"{identity}\n")
        if done.returncode:
            raise MinipcError(
                f"{alias}: the identity can't be written: {done.stderr.decode().strip()}", "is it root's login?"
            )
        return identity
    finally:
        ssh.close(config, [alias])
