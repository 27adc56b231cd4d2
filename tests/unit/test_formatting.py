"""How figures read."""

from __future__ import annotations

import pytest

from minipc.core import formatting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.994, "0.99 s"),
        (0.996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (247, "4 min 07 s"),
        (3599.6, "1 h"),
        (11100, "3 h 05 min"),
        (14400, "4 h"),
        (90000, "25 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_quantity() -> None:
    assert formatting.quantity(0, "changes") == "0 changes"
    assert formatting.quantity(14.25, "×") == "14.25 ×"
    assert formatting.quantity(360, "s") == "6 min"
    assert formatting.quantity(3, "") == "3"


def test_text_from_a_machine_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07red \x1b[31mtext\x1b[0m\r\nnext\x9b1m"
    assert formatting.one_line(hostile) == "]0;title red text next 1m"
    assert formatting.plain(hostile) == " ]0;title red text\nnext 1m"
    assert formatting.first_line("\n\n  \nfirst\nsecond") == "first"


def test_names_beside_their_component() -> None:
    assert formatting.within("redis", "redis: configure") == "configure"
    assert formatting.within("redis", "restart redis: now") == "restart redis: now"


def test_clock_and_counts() -> None:
    assert formatting.clock(3725.9) == "01:02:05"
    assert formatting.clock(-3) == "00:00:00"
    assert formatting.count(1, "check") == "1 check"
    assert formatting.count(0, "check") == "0 checks"
    assert formatting.thousands(1234567) == "1\u202f234\u202f567"
