"""Note which off-site machines of the lab are only a bucket or a storage box, for the inventory of their mini PC."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipc.core.files import write_atomic
from rehearsal.lab.machine import Machine, machines_dir


def note(machine: Machine, settings: Mapping[str, Any]) -> None:
    """Store the settings `offsite_*` for the mini PC of a machine that is a bucket or a storage box."""
    write_atomic(_file(machines_dir(), machine.name), json.dumps(settings).encode())


def settings_of(offsite: str | None) -> dict[str, Any] | None:
    """Return these settings; None if there is no such off-site machine, or if it is an off-site host."""
    file = _file(machines_dir(), offsite) if offsite else None
    return json.loads(file.read_text()) if file and file.exists() else None


def hand_over(machine: Machine, state: Path) -> None:
    """Copy the settings of a machine to another state directory."""
    file = _file(machines_dir(), machine.name)
    if file.exists():
        shutil.copy(file, _file(state / "lab/machines", machine.name))


def _file(machines: Path, name: str) -> Path:
    return machines / name / "offsite.json"
