"""The checks that a user would notice, against a running service. The result is JSON."""

from __future__ import annotations

import secrets
import time
from typing import Any

import httpx

TIMEOUT_S = 5.0


def run(url: str, wait_s: float = 0.0) -> dict[str, Any]:
    """Run all checks against the service at `url`, again until they pass or `wait_s` seconds are over."""
    give_up_at = time.monotonic() + wait_s
    while True:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            checks = [_check(name, function, client) for name, function in CHECKS.items()]
        passed = all(check["ok"] for check in checks)
        if passed or time.monotonic() >= give_up_at:
            return {"verdict": "pass" if passed else "fail", "url": url, "checks": checks}
        time.sleep(1.0)


def _check(name: str, function: Any, client: httpx.Client) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        ok, detail = True, function(client)
    except (AssertionError, httpx.HTTPError, LookupError, TypeError, ValueError) as error:
        ok, detail = False, f"{type(error).__name__}: {error}"
    return {"name": name, "ok": ok, "detail": detail, "ms": round((time.perf_counter() - began) * 1000, 1)}


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


def _screen(client: httpx.Client, path: str) -> str:
    body = _json(client.get(path))
    age_s, name = body["freshness"]["age_s"], body["freshness"]["class"]
    _expect(name == "fresh", f"data is {name}: {age_s} s old")
    return f"{len(body['items'])} items, {age_s} s old, status {body['status']}"


def _settings(client: httpx.Client) -> str:
    wanted = {"parking_alerts": False, "outing_alerts": True, "min_free_spaces": secrets.randbelow(10_000)}
    _json(client.put("/api/settings/smoke", json=wanted))
    _expect(_json(client.get("/api/settings/smoke")).items() >= wanted.items(), "read back differs")
    return "written and read back"


def _subscription(client: httpx.Client) -> str:
    body = {"user": "smoke", "endpoint": "https://push.invalid/smoke", "p256dh": "smoke", "auth": secrets.token_hex(8)}
    written = _json(client.post("/api/push-subscriptions", json=body), 201)
    _expect(written in _json(client.get("/api/push-subscriptions/smoke")), "not found after it was written")
    return "written and read back"


def _event(client: httpx.Client) -> str:
    body = {"user": "smoke", "kind": "smoke", "payload": {"nonce": secrets.token_hex(8)}}
    written = _json(client.post("/api/events", json=body), 201)
    _expect(_json(client.get(f"/api/events/{written['id']}"))["payload"] == body["payload"], "read back differs")
    return "written and read back"


CHECKS = {
    "health": _health,
    "parking screen is fresh": lambda client: _screen(client, "/api/parking"),
    "outing screen is fresh": lambda client: _screen(client, "/api/outing"),
    "notification settings (must recover)": _settings,
    "push subscription (must recover)": _subscription,
    "app event (evidence)": _event,
}
