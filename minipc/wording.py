"""How figures read: the same in the terminal, in the report and in the reasons of a verdict."""

from __future__ import annotations

import re

# C0 and C1 controls, escape included: text that came from a machine must not steer the terminal.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def duration(seconds: float) -> str:
    """A length of time in seconds, for a person: `0.04 s`, `7.3 s`, `43 s`, `4 min 07 s`, `3 h 05 min`, `4 h`."""
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
    """Seconds since a run began, as on a stop-watch: `00:04:07`."""
    whole = int(max(0.0, seconds))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def quantity(value: float, unit: str) -> str:
    """A figure with its unit; seconds become a duration, whole numbers lose their `.0`."""
    if unit in ("s", "seconds"):
        return duration(value)
    number = f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


def count(number: int, noun: str) -> str:
    """`1 operation`, `2 operations`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def thousands(number: int) -> str:
    """`18 240`, with narrow spaces that don't break."""
    return f"{number:,}".replace(",", "\u202f")


def one_line(text: str) -> str:
    """The text on one line, without colour codes and control characters."""
    return " ".join(_CONTROLS.sub(" ", _ANSI.sub("", text)).split())


def first_line(text: str) -> str:
    """The first line that isn't empty, cleaned like `one_line`; a sentence can end in it."""
    return next((line for line in map(one_line, text.splitlines()) if line), "")


def within(component: str, name: str) -> str:
    """An operation's name where its component is shown beside it: `redis: configure` becomes `configure`."""
    return one_line(name.removeprefix(f"{component}: "))


def plain(text: str) -> str:
    """The text with its lines, but without colour codes and control characters."""
    return "\n".join(_CONTROLS.sub(" ", _ANSI.sub("", line)).rstrip() for line in text.strip("\n").splitlines())
