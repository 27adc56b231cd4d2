"""What is pinned about a machine: its SSH host key and its identity. Nothing is ever trusted on first use."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from minipc.errors import ConfigError
from minipc.paths import ROOT, state_dir

PINS_FILE = ROOT / "inventory" / "pins.json"


class Pin(BaseModel):
    """Public facts about one machine; they may be committed.

    Attributes:
        host_key: type and base64 key, as in known_hosts: "ssh-ed25519 AAAA…".
        identity: UUID that `minipc adopt` wrote to /etc/minipc/identity.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    host_key: str
    identity: str | None = None


_PINS = TypeAdapter(dict[str, Pin])


def read_pins(path: Path = PINS_FILE) -> dict[str, Pin]:
    """All pins by alias.

    Raises:
        ConfigError: the file is not what `minipc adopt` writes.
    """
    try:
        return _PINS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise ConfigError(f"{path}: {error.errors()[0]['msg']}", "restore it from git, or adopt again") from None


def write_pin(alias: str, pin: Pin, path: Path = PINS_FILE) -> None:
    """Adds or replaces one pin; the file is replaced atomically."""
    pins = read_pins(path) | {alias: pin}
    content = json.dumps({name: pins[name].model_dump() for name in sorted(pins)}, indent=2) + "\n"
    temporary = path.with_suffix(".new")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def known_hosts_file(alias: str, address: str, port: int, pin: Pin | None) -> Path:
    """The known_hosts file of one machine, written from its pin; empty, so that SSH refuses, without one."""
    name = address if port == 22 else f"[{address}]:{port}"
    lines = f"{name} {pin.host_key}\n{alias} {pin.host_key}\n" if pin else ""
    # By address too: a machine may be reached in two ways at once, directly and through its VPN.
    path = state_dir("ssh") / f"{alias}@{address}.known_hosts"
    if not path.exists() or path.read_text(encoding="utf-8") != lines:
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(lines, encoding="utf-8")
        os.replace(temporary, path)
    return path
