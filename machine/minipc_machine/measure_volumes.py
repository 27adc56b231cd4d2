"""Measure how much disk space the volumes of the services use, and write it as metrics."""

from __future__ import annotations

from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.program import EXIT_PASS
from minipc_machine.repositories import settings
from minipc_machine.volume_files import used_bytes


def main(_: list[str]) -> int:
    """Write the metrics of all volumes."""
    volumes = [({"service": each.service, "volume": each.name}, each) for each in settings().volumes]
    write_metrics(
        "minipc_volumes",
        [
            Gauge(
                "minipc_volume_bytes",
                "Disk space that a volume of a service uses.",
                [(labels, used_bytes(each.path)) for labels, each in volumes if each.path.is_dir()],
            ),
            Gauge(
                "minipc_volume_limit_bytes",
                "The most that a volume may hold (size_gb in the service file).",
                [(labels, each.limit_bytes) for labels, each in volumes],
            ),
        ],
    )
    return EXIT_PASS
