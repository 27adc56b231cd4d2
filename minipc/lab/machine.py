"""What a lab machine is, where its state lives, and which addresses it gets. No side effects on the controller."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minipc.errors import ConfigError
from minipc.lab.network import OPERATOR, PUBLIC
from minipc.paths import state_dir

NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
RESERVED_NAMES = frozenset({PUBLIC.name, OPERATOR.name, "all", "localhost"})

FIRST_HOST = 10
MAX_MACHINES = 200


@dataclass(frozen=True)
class ProcessId:
    """A process that can't be mistaken for a later one with the same number.

    `started` is field 22 of /proc/PID/stat: clock ticks between the boot and the start of the process.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a running process; None when there is none (a zombie counts as none)."""
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
        index: smallest free number; its addresses and its range of user ids follow from it.
        disk_gb: size in GiB of its own writable disk.
        memory_mb: limit in MiB, None for none.
        k3s: started with what K3s needs.
        kept: survives its owner; only `down` removes it.
        image: directory of the base image.
        owner: the process it belongs to; None for a kept machine.
        host_key: public SSH host key, `ssh-ed25519 AAAA…`.
        process: the outermost process of the running machine; None when it was never started.
    """

    name: str
    index: int
    disk_gb: int
    image: str
    backend: str = "nspawn"
    memory_mb: int | None = None
    k3s: bool = False
    kept: bool = False
    owner: ProcessId | None = None
    host_key: str = ""
    process: ProcessId | None = field(default=None)

    ssh_port: int = 22
    ssh_user: str = "root"

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
        """The controller reaches machines over the operator side."""
        return self.operator_ipv4

    @property
    def host_key_fingerprint(self) -> str:
        """`SHA256:…` as `ssh-keygen -l` prints it."""
        return fingerprint_of(self.host_key)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.is_running()

    @property
    def abandoned(self) -> bool:
        """Not kept, and its owner is gone."""
        return not self.kept and (self.owner is None or not self.owner.is_running())

    def save(self) -> None:
        """Write `machine.json` atomically."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.directory / ".machine.json.new"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        temporary.rename(self.directory / "machine.json")


def fingerprint_of(public_key: str) -> str:
    """`SHA256:…` of a public SSH key (`ssh-ed25519 AAAA…`), as `ssh-keygen -l` prints it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def lab_dir() -> Path:
    return state_dir("lab")


def machines_dir() -> Path:
    return state_dir("lab", "machines")


def load(directory: Path) -> Machine | None:
    """The machine whose state is in `directory`; None when it is not one this version wrote completely."""
    try:
        values: dict[str, Any] = json.loads((directory / "machine.json").read_text())
        for key in ("owner", "process"):
            values[key] = ProcessId(**values[key]) if values[key] else None
        return Machine(**values)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_all() -> list[Machine]:
    """Every machine with state on this controller, running or not, by name."""
    found = (load(path) for path in sorted(machines_dir().iterdir()))
    return [machine for machine in found if machine]


def find(name: str) -> Machine | None:
    check_name(name)
    return load(machines_dir() / name)


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` can be a host name, a directory and an ssh alias at once."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"machine name {name!r} is not valid",
            "use 1 to 32 lower-case letters, digits and inner hyphens, a letter first, for example `mini-1`",
        )
    if name in RESERVED_NAMES:
        raise ConfigError(f"machine name {name!r} is reserved by the lab", "choose another name")


def free_index(used: Iterable[int]) -> int:
    """The smallest number no machine has. Raises ConfigError when the lab is full."""
    taken = set(used)
    for index in range(MAX_MACHINES):
        if index not in taken:
            return index
    raise ConfigError(f"the lab already has {MAX_MACHINES} machines", "minipc lab down --all")
