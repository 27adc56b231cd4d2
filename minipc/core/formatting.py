"""Format values in the same way for the terminal, the report and the reasons of a verdict."""

from __future__ import annotations

import re

# C0 and C1 controls with escape, and characters that reorder or hide text. Text from a machine must not control the
# terminal or be displayed as something else.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def duration(seconds: float) -> str:
    """Return a time in seconds as text: `0.04 s`, `7.3 s`, `43 s`, `4 min 07 s`, `3 h 05 min`, `4 h`."""
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60:02d} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60:02d} min" if minutes % 60 else "")


def clock(seconds: float) -> str:
    """Return the seconds since the start of a run as `00:04:07`."""
    whole = int(max(0.0, seconds))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit; seconds become a duration, whole numbers lose their `.0`."""
    if unit in ("s", "seconds"):
        return duration(value)
    number = f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 operation`, `2 operations`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def thousands(number: int) -> str:
    """Return a number such as `18 240`, with narrow no-break spaces."""
    return f"{number:,}".replace(",", "\u202f")


def one_line(text: str) -> str:
    """Return the text on one line, without colour codes and control characters."""
    return " ".join(_CONTROLS.sub(" ", _ANSI.sub("", text)).split())


def first_line(text: str) -> str:
    """Return the first line that is not empty, cleaned like `one_line`."""
    return next((line for line in map(one_line, text.splitlines()) if line), "")


def within(component: str, name: str) -> str:
    """Return an operation's name without its component: `redis: configure` becomes `configure`."""
    return one_line(name.removeprefix(f"{component}: "))


def plain(text: str) -> str:
    """Return the text with its lines, without colour codes and control characters."""
    return "\n".join(_CONTROLS.sub(" ", _ANSI.sub("", line)).rstrip() for line in text.strip("\n").splitlines())
