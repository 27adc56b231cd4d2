"""Keep Loki within its disk space: if it needs more, keep logs for a shorter time and report that in the journal.

Loki 3.7 deletes by age only. This program measures what is stored and sets the age in the overrides file, which Loki
reads while it runs; its compactor then deletes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

from minipc_machine.files import write_file

# Loki's own minimum.
LEAST_HOURS = 24
# Below this share of the limit the retention grows again.
GROW_BELOW = 0.8
GROWTH = 1.25


def stored(data: Path) -> tuple[int, float]:
    """Return the bytes on disk below `data`, and the age of the oldest chunk in hours."""
    total, oldest = 0, time.time()
    for folder, _, names in os.walk(data):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            total += found.st_blocks * 512
            if "/chunks/fake/" in f"{folder}/":
                oldest = min(oldest, found.st_mtime)
    return total, (time.time() - oldest) / 3600


def retention(used: int, bound: int, age_hours: float, now_hours: int, wanted_hours: int) -> int:
    """Return for how many hours logs should be kept.

    Args:
        used: bytes on disk.
        bound: bytes that may be used.
        age_hours: age of the oldest chunk.
        now_hours: retention in force.
        wanted_hours: retention in the settings.
    """
    if used > bound:
        # A retention longer than the oldest chunk's age deletes nothing, so the age counts if it is less.
        return max(LEAST_HOURS, int(min(now_hours, age_hours) * bound / used * 0.9))
    if used < GROW_BELOW * bound:
        return min(wanted_hours, max(now_hours, int(now_hours * GROWTH)))
    return min(now_hours, wanted_hours)


def current(file: Path, wanted_hours: int) -> int:
    """Return the retention in force, in hours."""
    found = re.search(r"retention_period: (\d+)h", file.read_text() if file.exists() else "")
    return int(found[1]) if found else wanted_hours


def main(arguments: list[str]) -> int:
    """Measure, and set the retention."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--hours", type=int, required=True)
    parser.add_argument("--max-mb", type=int, required=True)
    options = parser.parse_args(arguments)
    file = options.data / "bound.yaml"
    used, age = stored(options.data)
    before = current(file, options.hours)
    hours = retention(used, options.max_mb * 1024**2, age, before, options.hours)
    # Without authentication Loki has one tenant, `fake`.
    text = f"overrides:\n  fake:\n    retention_period: {hours}h\n" if hours < options.hours else "overrides: {}\n"
    if not file.exists() or file.read_text() != text:
        write_file(file, text)
    report = f"{used // 1024**2} MB of {options.max_mb} MB; logs are kept {hours} h of {options.hours} h"
    # journald reads the level from the prefix: 4 is a warning.
    print(
        f"<4>loki: {report}" if hours < options.hours else f"loki: {report}",
        file=sys.stderr if hours < before else sys.stdout,
    )
    return 0
