"""Request the service's health at a steady rate, and write the time of each answer.

    ip netns exec public python -m bench.latency --address ADDRESS --domain NAME --path PATH --ca FILE --out FILE

Runs until it is ended. Each line of the file: epoch seconds, seconds, HTTP code (0: none).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from rehearsal.load_generator import client_for

EVERY_S = 0.05


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent (epoch seconds), how long it took (seconds), the HTTP code."""

    at: float
    seconds: float
    code: int


def p95(answers: Sequence[Answer]) -> float:
    """Return the 95th percentile of the response times, seconds. Raise ValueError for fewer than 20 answers."""
    if len(answers) < 20:
        raise ValueError(f"{len(answers)} answers are too few for a 95th percentile")
    return statistics.quantiles([each.seconds for each in answers], n=20)[-1]


def read_answers(file: Path) -> list[Answer]:
    """Return the answers written so far, without an incomplete last line."""
    rows = (line.split() for line in file.read_text(encoding="utf-8").split("\n")[:-1])
    return [Answer(float(at), float(seconds), int(code)) for at, seconds, code in rows]


def main() -> None:
    """Send requests until the process is ended. A slow answer delays the next request, and the file shows the gap."""
    parser = argparse.ArgumentParser(description="Measure how fast the service answers.")
    for option in ("--address", "--domain", "--path", "--ca", "--out"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    with client_for(options.address, options.ca) as client, open(options.out, "w") as out:
        headers, name = {"Host": options.domain}, {"sni_hostname": options.domain}
        due = time.monotonic()
        while True:
            at, began = time.time(), time.monotonic()
            try:
                code = client.get(options.path, headers=headers, extensions=name).status_code
            except httpx.HTTPError:
                code = 0
            out.write(f"{at:.3f} {time.monotonic() - began:.6f} {code}\n")
            out.flush()
            due = max(due + EVERY_S, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
