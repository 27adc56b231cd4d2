"""Write a cron expression as systemd's calendar events."""

from __future__ import annotations

import re

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def calendar_events(schedule: str) -> list[str]:
    """Return the events of a valid cron expression, as systemd.time(7) has them, in UTC.

    There are two if both day and weekday are limited: cron runs when one of them matches, systemd when both do.
    """
    minute, hour, day, month, weekday = schedule.split()
    times = f"{_numbers(hour, 1)}:{_numbers(minute, 0)}:00 UTC"
    date = f"*-{_numbers(month, 3)}-{_numbers(day, 2)}"
    days = _weekdays(weekday)
    if not days:
        return [f"{date} {times}"]
    every_day = f"*-{_numbers(month, 3)}-*"
    return [f"{days} {every_day} {times}", *([f"{date} {times}"] if day != "*" else [])]


def _weekdays(text: str) -> str:
    """Return the names of the weekdays; empty for all. 0 and 7 are Sunday."""
    found = sorted({number % 7 for number in _values(text, 4)})
    return "" if len(found) == len(_WEEKDAYS) else ",".join(_WEEKDAYS[number] for number in found)


def _numbers(text: str, position: int) -> str:
    low, high = _LIMITS[position]
    found = sorted(_values(text, position))
    return "*" if len(found) == high - low + 1 else ",".join(f"{number:02}" for number in found)


def _values(text: str, position: int) -> set[int]:
    """Return the numbers that a field stands for: `*`, `5`, `1-5`, `*/15`, `10-40/10`, and lists of these."""
    low, high = _LIMITS[position]
    found: set[int] = set()
    for part in text.split(","):
        numbers, _, step = part.partition("/")
        first, last = low, high
        if numbers != "*":
            ends = [int(each) for each in re.findall(r"\d+", numbers)]
            # "5/10" begins at 5 and has no end.
            first, last = ends[0], ends[-1] if len(ends) > 1 or not step else high
        found |= set(range(first, last + 1, int(step or 1)))
    return found
