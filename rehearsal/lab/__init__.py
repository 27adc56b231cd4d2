"""The lab: disposable Debian 13 machines with real systemd, reached over SSH exactly like production.

    with machine("mini") as mini:
        run(mini, ["systemctl", "is-system-running"])

docs/concepts/lab.md explains how it works and what it cannot do.
"""

from __future__ import annotations

from rehearsal.lab.backends import BackendName
from rehearsal.lab.lifecycle import (
    destroy,
    down,
    ensure_backend,
    ensure_image,
    list_machines,
    machine,
    power_off,
    reboot,
    start,
    up,
)
from rehearsal.lab.machine import Machine, find
from rehearsal.lab.nspawn import console_command
from rehearsal.lab.prerequisites import ensure_prerequisites
from rehearsal.lab.ssh import known_hosts_path, run, ssh_command, ssh_config_path

__all__ = [
    "BackendName",
    "Machine",
    "console_command",
    "destroy",
    "down",
    "ensure_backend",
    "ensure_image",
    "ensure_prerequisites",
    "find",
    "known_hosts_path",
    "list_machines",
    "machine",
    "power_off",
    "reboot",
    "run",
    "ssh_command",
    "ssh_config_path",
    "start",
    "up",
]
