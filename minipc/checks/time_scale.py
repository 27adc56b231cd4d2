"""Shorten all durations in rule and configuration files, so that tests of real alerts are fast."""

from __future__ import annotations

import re

from minipc.checks.schema import seconds

# Not scrape_timeout: a target that answers slowly must not look like one that is down.
# Settings whose value is a duration, windows of PromQL ([5m], [10m:30s]), and offsets.
_DURATIONS = re.compile(
    r"(?P<before>\b(?:for|interval|scrape_interval|evaluation_interval|group_wait|group_interval"
    r"|repeat_interval|keep_firing_for): |\[|:|offset )(?P<duration>\d+[smhd])(?=[\]:\s)}]|$)",
    re.MULTILINE,
)


def scaled(text: str, time_scale: float) -> str:
    """Return the file with its durations divided by `time_scale`; 1 changes nothing.

    Args:
        text: a rule file, a scrape file, or the configuration of Prometheus or Alertmanager.
    """
    if time_scale == 1:
        return text
    return _DURATIONS.sub(lambda found: found["before"] + faster(found["duration"], time_scale), text)


def faster(duration: str, time_scale: float) -> str:
    """Return a duration divided by the time scale: `5m` and 10 give `30000ms`."""
    return f"{max(1, round(seconds(duration) * 1000 / time_scale))}ms"
