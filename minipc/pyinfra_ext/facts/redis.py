"""Redis queues on the machine."""

from __future__ import annotations

from pyinfra.api import FactBase


class QueueConfigurations(FactBase[list[str]]):
    """Paths of the configurations of all queues."""

    def command(self) -> str:
        return "find /etc/redis -name 'redis-queue-*.conf' 2>/dev/null | sort; true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return list(output)
