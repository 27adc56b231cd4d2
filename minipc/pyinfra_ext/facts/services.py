"""Data of services on the machine, whether they are declared or not."""

from __future__ import annotations

from pyinfra.api import FactBase

from minipc.pyinfra_ext.facts.postgres import SUPERUSER_PSQL
from minipc.services.queues import FOLDER as QUEUES
from minipc_machine.volume_files import VOLUMES

_DATABASES = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname NOT IN ('postgres', 'minipc')"


class DataOfServices(FactBase[list[tuple[str, str]]]):
    """Kind ("volumes", "queue" or "database") and name of all data of services."""

    def command(self, port: int) -> str:
        return (
            f"cd /; ls {VOLUMES} 2>/dev/null | sed 's/^/volumes /'; ls {QUEUES} 2>/dev/null | sed 's/^/queue /'; "
            f'{SUPERUSER_PSQL} -XAtq -p {port} -d postgres -c "{_DATABASES}" 2>/dev/null | sed "s/^/database /"; true'
        )

    @staticmethod
    def default() -> list[tuple[str, str]]:
        return []

    def process(self, output: list[str]) -> list[tuple[str, str]]:
        found = (line.strip().partition(" ") for line in output)
        return sorted((kind, name) for kind, _, name in found if name)
