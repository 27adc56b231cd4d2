"""pytest plugin: the same checks, but every remote command connects anew, as testinfra's `ssh://` does by itself."""

from __future__ import annotations

import os
from pathlib import Path

from bench.checks import CONFIG_VARIABLE
from minipc import ssh


def pytest_configure() -> None:
    """What asks for our ssh_config gets the one without shared connections."""
    ssh.write_config = lambda hosts: Path(os.environ[CONFIG_VARIABLE])
