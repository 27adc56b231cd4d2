"""Stand-ins for the services outside, so that the workload needs no internet: same code path, answered in-process."""

from __future__ import annotations

import json
import logging
import math
from datetime import UTC, datetime

import httpx

log = logging.getLogger(__name__)

LOTS = {"castle": 420, "harbour": 310, "market": 180, "museum": 95, "station": 640, "stadium": 1200}
DISTRICTS = ("harbour", "hills", "lakeside", "old-town")


def source_at(moment: datetime, path: str) -> object:
    """What the public source says at a moment: a function of the minute alone, so that tests can predict it.

    Raises:
        KeyError: no such document.
    """
    minute = moment.replace(second=0, microsecond=0)
    day = 2 * math.pi * minute.timestamp() / 86_400
    documents = {
        "/parking": [
            {
                "id": name,
                "name": name.title(),
                "capacity": capacity,
                "free": round(capacity * (0.5 + 0.45 * math.sin(day + number))),
                "observed_at": minute.isoformat(),
            }
            for number, (name, capacity) in enumerate(LOTS.items())
        ],
        "/weather": [
            {
                "id": name,
                "name": name.replace("-", " ").title(),
                "temperature_c": round(16 + 8 * math.sin(day - 2) - number, 1),
                "rain_mm": round(max(0.0, 4 * math.sin(3 * day + number) - 2), 1),
                "air_quality": round(60 + 40 * math.sin(day + 2 * number)),
                "observed_at": minute.isoformat(),
            }
            for number, name in enumerate(DISTRICTS)
        ],
    }
    return documents[path]


def source() -> httpx.MockTransport:
    """Answers like the public source."""

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=source_at(datetime.now(UTC), request.url.path))

    return httpx.MockTransport(respond)


def push_gateway() -> httpx.MockTransport:
    """Takes every notification and only writes its title to the log."""

    def respond(request: httpx.Request) -> httpx.Response:
        notification = json.loads(request.content)["notification"]
        log.info("notification delivered to the log", extra={"title": notification["title"]})
        return httpx.Response(202)

    return httpx.MockTransport(respond)
