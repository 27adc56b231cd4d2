"""The two environments, production and the lab, and everything in which they differ.

Other code uses the attributes of an `Environment`; it never compares names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minipc.core import paths
from minipc.core.errors import ConfigError

EnvironmentName = Literal["production", "lab"]
AGE_KEY_VARIABLE = "MINIPC_AGE_KEY_FILE"
LAB_SECRETS_VARIABLE = "MINIPC_LAB_SECRETS_DIR"


@dataclass(frozen=True)
class Environment:
    """Production or the lab.

    Attributes:
        name: name of the inventory file, of its list of machines and of the group_data file.
        backend: what runs its machines, as records name it.
        add_machine: what the operator does when the inventory lacks a machine, "{file}" being the inventory file.
        in_repository: pins, approvals and secrets are files of the repository, which the operator commits. Otherwise
            they are generated on this computer, and the secrets are always in an age file.
        disposable: no user depends on its machines: checks may stop services, and the service may run without K3s.
        has_public_client: commands can be run on the public side, as a user of the service would.
        shares_kernel: machines may be containers that share the controller's kernel and clock.
        reports_vpn_bypass: records say whether the operator's ports answer outside the VPN.
    """

    name: EnvironmentName
    backend: str
    add_machine: str
    in_repository: bool
    disposable: bool
    has_public_client: bool
    shares_kernel: bool
    reports_vpn_bypass: bool

    def __str__(self) -> str:
        return self.name

    @property
    def inventory_file(self) -> Path:
        """Return the path `inventory/NAME.py`."""
        return paths.ROOT / "inventory" / f"{self.name}.py"

    @property
    def trust_folder(self) -> Path:
        """Return the folder of pins, allowed signers and approvals."""
        return paths.ROOT / "inventory" if self.in_repository else paths.state_dir(self.name)

    @property
    def pins_file(self) -> Path:
        """Return the file with the pinned host keys and identities."""
        return self.trust_folder / "pins.json"

    @property
    def age_file(self) -> Path:
        """Return the encrypted file with the secrets."""
        return paths.ROOT / "secrets" / f"{self.name}.age" if self.in_repository else _generated_secrets() / "lab.age"

    @property
    def age_key_file(self) -> Path:
        """Return the key that opens `age_file`, outside the repository. A rehearsal never uses production's key."""
        if not self.in_repository:
            return _generated_secrets() / "age.key"
        override = os.environ.get(AGE_KEY_VARIABLE)
        return Path(override).expanduser() if override else paths.config_dir() / "age.key"


def _generated_secrets() -> Path:
    """Return the folder of the lab's secrets: `$MINIPC_LAB_SECRETS_DIR`, else one in the state directory.

    A rebuild replaces the keys of the machine it rebuilds, so two rehearsals at once need two folders.
    """
    override = os.environ.get(LAB_SECRETS_VARIABLE)
    if not override:
        return paths.state_dir("lab", "secrets")
    path = Path(override).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


PRODUCTION = Environment(
    name="production",
    backend="hardware",
    add_machine="correct the name, or add the machine to {file}",
    in_repository=True,
    disposable=False,
    has_public_client=False,
    shares_kernel=False,
    reports_vpn_bypass=True,
)
LAB = Environment(
    name="lab",
    backend="nspawn",
    add_machine="`minipc lab up` creates one",
    in_repository=False,
    disposable=True,
    has_public_client=True,
    shares_kernel=True,
    reports_vpn_bypass=False,
)
ENVIRONMENTS = {environment.name: environment for environment in (PRODUCTION, LAB)}


def named(name: str) -> Environment:
    """Return the environment of that name.

    Raises:
        ConfigError: there is none.
    """
    found = [environment for environment in ENVIRONMENTS.values() if environment.name == name]
    if not found:
        raise ConfigError(f"there is no environment {name!r}", f"use one of: {', '.join(ENVIRONMENTS)}")
    return found[0]
