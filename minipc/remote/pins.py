"""Pins: the SSH host key and the identity of each machine. Nothing is trusted on first use."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from minipc.core.errors import ConfigError
from minipc.core.files import write_atomic
from minipc.core.paths import state_dir
from minipc.core.strict import Strict


class Pin(Strict):
    """Public facts about one machine; they may be committed.

    Attributes:
        host_key: type and base64 key, as in known_hosts: "ssh-ed25519 AAAA…".
        identity: UUID that `minipc adopt` wrote to /etc/minipc/identity.
    """

    host_key: str
    identity: str | None = None


_PINS = TypeAdapter(dict[str, Pin])


def read_pins(path: Path) -> dict[str, Pin]:
    """Return all pins by alias; none if the file does not exist.

    Raises:
        ConfigError: the file is not what `minipc adopt` writes.
    """
    try:
        return _PINS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise ConfigError(f"{path}: {error.errors()[0]['msg']}", "restore it from git, or adopt again") from None


def write_pin(alias: str, pin: Pin, path: Path) -> None:
    """Add or replace one pin. The file is replaced atomically."""
    pins = read_pins(path) | {alias: pin}
    content = json.dumps({name: pins[name].model_dump() for name in sorted(pins)}, indent=2) + "\n"
    write_atomic(path, content.encode(), mode=0o644)


def known_hosts_file(alias: str, address: str, port: int, pin: Pin | None) -> Path:
    """Write the known_hosts file of one machine from its pin and return it. Without a pin it is empty: SSH refuses."""
    name = address if port == 22 else f"[{address}]:{port}"
    lines = f"{name} {pin.host_key}\n{alias} {pin.host_key}\n" if pin else ""
    # By address too: a machine may be reached in two ways at once, directly and through its VPN.
    path = state_dir("ssh") / f"{alias}@{address}.known_hosts"
    if not path.exists() or path.read_text(encoding="utf-8") != lines:
        write_atomic(path, lines.encode())
    return path
