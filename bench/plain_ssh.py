"""pytest plugin: run the same checks over testinfra's default `ssh://`, where every command opens a connection."""

from __future__ import annotations

import os
from pathlib import Path

from testinfra.backend.ssh import SshBackend

from bench.checks import CONFIG_VARIABLE
from minipc.remote import persistent_shell, ssh


def pytest_configure() -> None:
    """Use an ssh_config without shared connections, and keep no shell open."""
    ssh.write_config = lambda hosts: Path(os.environ[CONFIG_VARIABLE])
    persistent_shell.ShellBackend.run_ssh = SshBackend.run_ssh  # type: ignore[method-assign]
