"""Write metrics for the textfile collector of Prometheus' node exporter.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from minipc_machine.files import write_file

TEXTFILES = Path("/var/lib/prometheus/node-exporter")

Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True)
class Gauge:
    """A metric and its samples.

    Attributes:
        samples: pairs of labels and value; a metric without samples is written with its help only.
    """

    name: str
    help: str
    samples: Iterable[Sample]


def text_of(gauges: Iterable[Gauge]) -> str:
    """Return gauges in Prometheus' text format."""
    lines = []
    for gauge in gauges:
        lines += [f"# HELP {gauge.name} {gauge.help}", f"# TYPE {gauge.name} gauge"]
        for labels, value in gauge.samples:
            shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            lines.append(f"{gauge.name}{{{shown}}} {value:.10g}" if shown else f"{gauge.name} {value:.10g}")
    return "".join(f"{line}\n" for line in lines)


def write_metrics(name: str, gauges: Iterable[Gauge]) -> None:
    """Replace `NAME.prom` in the folder that the node exporter reads."""
    write_file(TEXTFILES / f"{name}.prom", text_of(gauges))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
