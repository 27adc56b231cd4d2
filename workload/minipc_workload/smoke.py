"""The checks a user would notice, against a running service. Says what it found as JSON."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import httpx

USER = "smoke"
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Check:
    """One check and how it went."""

    name: str
    ok: bool
    detail: str
    ms: float


def run(url: str, wait_s: float = 0.0) -> dict[str, Any]:
    """All checks against the service at `url`; repeated until they pass or `wait_s` seconds are over."""
    give_up_at = time.monotonic() + wait_s
    while True:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            checks = [_check(name, function, client) for name, function in CHECKS.items()]
        passed = all(check.ok for check in checks)
        if passed or time.monotonic() >= give_up_at:
            return {"verdict": "pass" if passed else "fail", "url": url, "checks": [asdict(check) for check in checks]}
        time.sleep(1.0)


def _check(name: str, function: Callable[[httpx.Client], str], client: httpx.Client) -> Check:
    began = time.perf_counter()
    try:
        ok, detail = True, function(client)
    except (AssertionError, httpx.HTTPError, LookupError, TypeError, ValueError) as error:
        ok, detail = False, f"{type(error).__name__}: {error}"
    return Check(name, ok, detail, round((time.perf_counter() - began) * 1000, 1))


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def _json(response: httpx.Response, status: int = 200) -> Any:
    _expect(response.status_code == status, f"{response.url.path} answered {response.status_code}, not {status}")
    return response.json()


def _health(client: httpx.Client) -> str:
    body = client.get("/api/health").json()
    _expect(body["status"] == "ok", f"db {body['db']}, worker {body['worker']}")
    return f"up for {body['uptime_s']} s"


def _screen(path: str) -> Callable[[httpx.Client], str]:
    def check(client: httpx.Client) -> str:
        body = _json(client.get(path))
        age_s, name = body["freshness"]["age_s"], body["freshness"]["class"]
        _expect(name == "fresh", f"data is {name}: {age_s} s old")
        return f"{len(body['items'])} items, {age_s} s old, status {body['status']}"

    return check


def _settings(client: httpx.Client) -> str:
    wanted = {"parking_alerts": False, "outing_alerts": True, "min_free_spaces": secrets.randbelow(10_000)}
    _json(client.put(f"/api/settings/{USER}", json=wanted))
    read = _json(client.get(f"/api/settings/{USER}"))
    _expect({key: read[key] for key in wanted} == wanted, "read back differs from what was written")
    return "written and read back"


def _subscription(client: httpx.Client) -> str:
    body = {"user": USER, "endpoint": "https://push.invalid/smoke", "p256dh": "smoke", "auth": secrets.token_hex(8)}
    written = _json(client.post("/api/push-subscriptions", json=body), 201)
    _expect(written in _json(client.get(f"/api/push-subscriptions/{USER}")), "not found after it was written")
    return "written and read back"


def _event(client: httpx.Client) -> str:
    body = {"user": USER, "kind": "smoke", "payload": {"nonce": secrets.token_hex(8)}}
    written = _json(client.post("/api/events", json=body), 201)
    _expect(_json(client.get(f"/api/events/{written['id']}"))["payload"] == body["payload"], "read back differs")
    return "written and read back"


CHECKS: dict[str, Callable[[httpx.Client], str]] = {
    "health": _health,
    "parking screen is fresh": _screen("/api/parking"),
    "outing screen is fresh": _screen("/api/outing"),
    "notification settings (must recover)": _settings,
    "push subscription (must recover)": _subscription,
    "app event (evidence)": _event,
}
