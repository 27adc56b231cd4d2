"""pytest plugin: the same checks over testinfra's `ssh://` as it comes: every remote command connects anew."""

from __future__ import annotations

import os
from pathlib import Path

from testinfra.backend.ssh import SshBackend

from bench.checks import CONFIG_VARIABLE
from minipc import remote_shell, ssh


def pytest_configure() -> None:
    """What asks for our ssh_config gets the one without shared connections, and no shell stays open."""
    ssh.write_config = lambda hosts: Path(os.environ[CONFIG_VARIABLE])
    remote_shell.ShellBackend.run_ssh = SshBackend.run_ssh  # type: ignore[method-assign]
