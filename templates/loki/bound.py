#!/usr/bin/python3
"""Keeps Loki within its disk space: when it needs more, logs are kept for less long, and the journal says so.

Written by minipc (templates/loki/bound.py). Loki 3.7 deletes by age only. This looks at what is stored, and sets the
age in the file of overrides, which Loki reads while it runs; its compactor then deletes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

# Loki's own least.
LEAST_HOURS = 24
# Below this share of the bound the retention grows again.
ROOM = 0.8
GROWTH = 1.25


def stored(data: Path) -> tuple[int, float]:
    """Bytes on disk below `data`, and the age of the oldest chunk, hours."""
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
    """For how many hours logs are to be kept."""
    if used > bound:
        # What is younger than the retention anyway would not go by lowering it a little.
        return max(LEAST_HOURS, int(min(now_hours, age_hours) * bound / used * 0.9))
    if used < ROOM * bound:
        return min(wanted_hours, max(now_hours, int(now_hours * GROWTH)))
    return min(now_hours, wanted_hours)


def current(file: Path, wanted_hours: int) -> int:
    """The retention in force, hours."""
    found = re.search(r"retention_period: (\d+)h", file.read_text() if file.exists() else "")
    return int(found[1]) if found else wanted_hours


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--hours", type=int, required=True)
    parser.add_argument("--max-mb", type=int, required=True)
    given = parser.parse_args()
    file = given.data / "bound.yaml"
    used, age = stored(given.data)
    before = current(file, given.hours)
    hours = retention(used, given.max_mb * 1024**2, age, before, given.hours)
    # Nobody else is known to a Loki without authentication.
    text = f"overrides:\n  fake:\n    retention_period: {hours}h\n" if hours < given.hours else "overrides: {}\n"
    if not file.exists() or file.read_text() != text:
        candidate = file.with_suffix(".new")
        candidate.write_text(text)
        candidate.rename(file)
    said = f"{used // 1024**2} MB of {given.max_mb} MB; logs are kept {hours} h of {given.hours} h"
    # journald takes the level from the prefix.
    print(
        f"<4>loki: {said}" if hours < given.hours else f"loki: {said}",
        file=sys.stderr if hours < before else sys.stdout,
    )


if __name__ == "__main__":
    main()
