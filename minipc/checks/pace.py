"""Alert rules in fast motion: every duration of a rendered file divided by the pace, for tests of real alerts."""

from __future__ import annotations

import re

from minipc.checks.schema import seconds

# A program's patience (scrape_timeout) stays: what answers late must not look like what is not there.
# Settings whose value is a duration, windows of PromQL ([5m], [10m:30s]), and offsets.
_DURATIONS = re.compile(
    r"(?P<before>\b(?:for|interval|scrape_interval|evaluation_interval|group_wait|group_interval"
    r"|repeat_interval|keep_firing_for): |\[|:|offset )(?P<duration>\d+[smhd])(?=[\]:\s)}]|$)",
    re.MULTILINE,
)


def paced(text: str, pace: float) -> str:
    """The file with its durations divided by `pace`; 1 leaves it as it is.

    Args:
        text: a rule file, a scrape file, or the configuration of Prometheus or Alertmanager.
    """
    if pace == 1:
        return text
    return _DURATIONS.sub(lambda found: found["before"] + faster(found["duration"], pace), text)


def faster(duration: str, pace: float) -> str:
    """`5m` at pace 10 is `30000ms`."""
    return f"{max(1, round(seconds(duration) * 1000 / pace))}ms"
