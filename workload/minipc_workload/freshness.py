"""How old data is, and what an answer may call itself because of it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

FreshnessClass = Literal["fresh", "aging", "stale"]
Status = Literal["ok", "degraded", "stale"]


@dataclass(frozen=True)
class Limits:
    """Up to `fresh_s` seconds old is fresh, up to `stale_s` aging, older is stale."""

    fresh_s: int
    stale_s: int

    def classify(self, age_s: float) -> FreshnessClass:
        """The class of an age in seconds."""
        if age_s <= self.fresh_s:
            return "fresh"
        return "aging" if age_s <= self.stale_s else "stale"


def answer(
    generated_at: datetime,
    items: Sequence[dict[str, Any]],
    complete: bool,
    fallback: bool,
    now: datetime,
    limits: Limits,
) -> dict[str, Any]:
    """What a screen says.

    Args:
        generated_at: when the items were read from the database.
        items: each with `observed_at` as an ISO time; at least one.
        complete: nothing that belongs on the screen is missing.
        fallback: the items come from the cache because the database could not be asked.
    """
    times = [datetime.fromisoformat(item["observed_at"]) for item in items]
    ages = [max(0.0, (now - time).total_seconds()) for time in times]
    classes = [limits.classify(age) for age in ages]
    return {
        "status": status_of(classes, complete, fallback),
        "generated_at": generated_at.isoformat(),
        "observed_at": max(times).isoformat(),
        "freshness": {"age_s": round(min(ages)), "class": limits.classify(min(ages))},
        "items": [
            item | {"freshness": {"age_s": round(age), "class": name}}
            for item, age, name in zip(items, ages, classes, strict=True)
        ],
    }


def status_of(classes: Sequence[FreshnessClass], complete: bool, fallback: bool) -> Status:
    """`ok`: all of it current. `degraded`: something old or missing. `stale`: nothing on it is current."""
    if all(name == "stale" for name in classes) or (fallback and "fresh" not in classes):
        return "stale"
    if fallback or not complete or "stale" in classes:
        return "degraded"
    return "ok"
