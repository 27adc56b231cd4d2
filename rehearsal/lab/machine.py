"""State and addresses of a lab machine. This module changes nothing on the controller except that state."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minipc.core.errors import ConfigError
from minipc.core.files import write_atomic
from minipc.core.paths import state_dir
from minipc.remote.host_keys import fingerprint_of
from rehearsal.lab.network import OPERATOR, PUBLIC

NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
RESERVED_NAMES = frozenset({PUBLIC.name, OPERATOR.name, "all", "localhost"})

FIRST_HOST = 10
MAX_MACHINES = 200


@dataclass(frozen=True)
class ProcessId:
    """Identity of a process, which differs from a later process with the same pid.

    `started` is field 22 of /proc/PID/stat: clock ticks between the boot and the start of the process.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of a running process; None if there is none. A zombie does not count as running."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else cls(pid, int(fields[18]))

    @classmethod
    def own(cls) -> ProcessId:
        own = cls.of(os.getpid())
        if own is None:
            raise RuntimeError("/proc is not mounted")
        return own

    def is_running(self) -> bool:
        return ProcessId.of(self.pid) == self


@dataclass
class Machine:
    """A disposable machine. Written to `machine.json` in its directory, which is the one source of its state.

    Attributes:
        name: also its host name and its alias in `ssh_config`.
        index: smallest free number. Addresses and the range of user ids are derived from it.
        disk_gb: size in GiB of its own writable disk.
        memory_mb: limit in MiB, None for none.
        k3s: runs K3s, and is started with the permissions that it needs.
        podman: started with the same permissions, for containers without K3s.
        kept: survives its owner; only `down` removes it.
        image: directory of the base image.
        owner: the process it belongs to; None for a kept machine.
        host_key: public SSH host key, `ssh-ed25519 AAAA…`.
        process: the outermost process of the running machine; None if it was never started.
    """

    name: str
    index: int
    disk_gb: int
    image: str
    backend: str = "nspawn"
    memory_mb: int | None = None
    k3s: bool = False
    podman: bool = False
    kept: bool = False
    owner: ProcessId | None = None
    host_key: str = ""
    process: ProcessId | None = field(default=None)

    ssh_port: int = 22
    ssh_user: str = "root"

    @property
    def runs_containers(self) -> bool:
        """Return whether it has the permissions that containers need."""
        return self.k3s or self.podman

    @property
    def directory(self) -> Path:
        return machines_dir() / self.name

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    @property
    def public_ipv4(self) -> str:
        return PUBLIC.ipv4_of(FIRST_HOST + self.index)

    @property
    def public_ipv6(self) -> str:
        return PUBLIC.ipv6_of(FIRST_HOST + self.index)

    @property
    def operator_ipv4(self) -> str:
        return OPERATOR.ipv4_of(FIRST_HOST + self.index)

    @property
    def operator_ipv6(self) -> str:
        return OPERATOR.ipv6_of(FIRST_HOST + self.index)

    @property
    def ssh_host(self) -> str:
        """Return the address through which the controller reaches the machine: the operator side."""
        return self.operator_ipv4

    @property
    def host_key_fingerprint(self) -> str:
        """Return `SHA256:…` as `ssh-keygen -l` prints it."""
        return fingerprint_of(self.host_key)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.is_running()

    @property
    def abandoned(self) -> bool:
        """Return whether the machine is not kept and its owner has ended."""
        return not self.kept and (self.owner is None or not self.owner.is_running())

    def save(self) -> None:
        """Write `machine.json` atomically."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self.directory / "machine.json", (json.dumps(asdict(self), indent=2) + "\n").encode())


def lab_dir() -> Path:
    return state_dir("lab")


def machines_dir() -> Path:
    return state_dir("lab", "machines")


def load(directory: Path) -> Machine | None:
    """Return the machine whose state is in `directory`; None if the state is incomplete or of another version."""
    try:
        values: dict[str, Any] = json.loads((directory / "machine.json").read_text())
        for key in ("owner", "process"):
            values[key] = ProcessId(**values[key]) if values[key] else None
        return Machine(**values)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_all() -> list[Machine]:
    """Return every machine with state on this controller, running or not, by name."""
    found = (load(path) for path in sorted(machines_dir().iterdir()))
    return [machine for machine in found if machine]


def find(name: str) -> Machine | None:
    check_name(name)
    return load(machines_dir() / name)


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` is valid as host name, directory and SSH alias."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"machine name {name!r} is not valid",
            "use 1 to 32 lower-case letters, digits and inner hyphens, a letter first, for example `mini-1`",
        )
    if name in RESERVED_NAMES:
        raise ConfigError(f"machine name {name!r} is reserved by the lab", "choose another name")


def free_index(used: Iterable[int]) -> int:
    """Return the smallest number that no machine has. Raises ConfigError if the lab is full."""
    taken = set(used)
    for index in range(MAX_MACHINES):
        if index not in taken:
            return index
    raise ConfigError(f"the lab already has {MAX_MACHINES} machines", "minipc lab down --all")
