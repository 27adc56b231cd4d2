"""What an answer may call itself, given how old its parts are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from minipc_workload.freshness import FreshnessClass, Limits, Status, answer, status_of

LIMITS = Limits(fresh_s=180, stale_s=600)
NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("age_s", "name"), [(0, "fresh"), (180, "fresh"), (180.1, "aging"), (600, "aging"), (600.1, "stale")]
)
def test_classes(age_s: float, name: str) -> None:
    assert LIMITS.classify(age_s) == name


@pytest.mark.parametrize(
    ("classes", "complete", "fallback", "status"),
    [
        (["fresh", "fresh"], True, False, "ok"),
        (["fresh", "aging"], True, False, "ok"),
        (["fresh", "stale"], True, False, "degraded"),
        (["fresh", "fresh"], False, False, "degraded"),
        (["stale", "stale"], True, False, "stale"),
        (["fresh", "aging"], True, True, "degraded"),
        (["aging", "aging"], True, True, "stale"),
        (["stale", "stale"], False, True, "stale"),
    ],
)
def test_status(classes: list[FreshnessClass], complete: bool, fallback: bool, status: Status) -> None:
    assert status_of(classes, complete, fallback) == status


def test_the_answer_tells_its_age_now_not_when_it_was_made() -> None:
    items = [
        {"id": "a", "observed_at": (NOW - timedelta(seconds=30)).isoformat()},
        {"id": "b", "observed_at": (NOW - timedelta(seconds=200)).isoformat()},
    ]
    later = NOW + timedelta(seconds=500)
    body = answer(NOW, items, complete=True, fallback=True, now=later, limits=LIMITS)
    assert body["status"] == "stale"
    assert body["generated_at"] == "2030-01-01T12:00:00+00:00"
    assert body["observed_at"] == items[0]["observed_at"]
    assert body["freshness"] == {"age_s": 530, "class": "aging"}
    assert [item["freshness"]["class"] for item in body["items"]] == ["aging", "stale"]


def test_a_clock_ahead_of_ours_is_not_a_negative_age() -> None:
    items = [{"observed_at": (NOW + timedelta(seconds=40)).isoformat()}]
    assert answer(NOW, items, True, False, NOW, LIMITS)["freshness"] == {"age_s": 0, "class": "fresh"}
