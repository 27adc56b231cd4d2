"""Facts that identify and describe the machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import FactBase

IDENTITY_FILE = "/etc/minipc/identity"


@dataclass(frozen=True)
class Admission:
    """Facts that the guards check before the first change.

    Attributes:
        identity: written by `minipc adopt`; None if the machine was not adopted.
        user: the user that we are logged in as.
        version: Debian's VERSION_ID, such as "13"; empty on anything else.
        free_mb: free disk space below /var, MB.
        client: source address of our SSH connection, as the machine sees it; empty on a console.
        port: destination TCP port of our SSH connection; 0 on a console.
        interface: interface on which it arrives; empty on a console.
    """

    identity: str | None
    user: str
    version: str
    free_mb: int
    client: str = ""
    port: int = 0
    interface: str = ""


class MachineAdmission(FactBase[Admission]):
    """Return identity, login, distribution and free disk space, in one remote command."""

    def command(self) -> str:
        return (
            f'id -un; (. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_ID" || echo); '
            "df --output=avail -BM /var | tail -n 1; "
            # Client address and port, our address and port; then the interface that has our address.
            "set -- $SSH_CONNECTION; echo $1 $4 "
            '$([ -z "$3" ] || ip -o address show to "$3" | awk \'{print $2; exit}\'); '
            f"cat {IDENTITY_FILE} 2>/dev/null || true"
        )

    def process(self, output: list[str]) -> Admission:
        user, version, free, connection, *identity = (line.strip() for line in output)
        client, port, interface = (*connection.split(), "", "", "")[:3]
        free_mb = int(free.removesuffix("M"))
        return Admission(identity[0] if identity else None, user, version, free_mb, client, int(port or 0), interface)


class Absent(FactBase[list[str]]):
    """Return the paths that do not exist on the machine."""

    def command(self, paths: Sequence[str]) -> str:
        return f"for path in {' '.join(shlex.quote(path) for path in paths)}; do [ -e $path ] || echo $path; done"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return output


class MachineSize(FactBase[dict[str, int]]):
    """Return `memory_mb` and `cpus` as the machine's kernel reports them."""

    def command(self) -> str:
        memory = "$(awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo)"
        return f'printf \'{{"memory_mb": %s, "cpus": %s}}\' {memory} $(nproc)'

    def process(self, output: list[str]) -> dict[str, int]:
        return {str(key): int(value) for key, value in json.loads(output[0]).items()}


class WireguardInKernel(FactBase[bool]):
    """Return whether the kernel has WireGuard; in a container this is unknown, so False."""

    def command(self) -> str:
        return "if [ -e /sys/module/wireguard ] || modprobe -qn wireguard 2>/dev/null; then echo yes; else echo no; fi"

    def process(self, output: list[str]) -> bool:
        return output == ["yes"]
