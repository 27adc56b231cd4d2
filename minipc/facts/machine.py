"""Which machine this is."""

from __future__ import annotations

import json

from pyinfra.api import FactBase

IDENTITY_FILE = "/etc/minipc/identity"


class MachineIdentity(FactBase[str | None]):
    """The identity that `minipc adopt` gave the machine; None on one that was never adopted."""

    def command(self) -> str:
        return f"cat {IDENTITY_FILE} 2>/dev/null || true"

    def process(self, output: list[str]) -> str | None:
        return output[0].strip() or None


class MachineSize(FactBase[dict[str, int]]):
    """`memory_mb` and `cpus` as the machine's kernel sees them."""

    def command(self) -> str:
        memory = "$(awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo)"
        return f"printf '{{\"memory_mb\": %s, \"cpus\": %s}}' {memory} $(nproc)"

    def process(self, output: list[str]) -> dict[str, int]:
        return {str(key): int(value) for key, value in json.loads(output[0]).items()}
