"""Send requests through the public ingress until the process is terminated, and judge every answer.

    python3 request_loop.py ADDRESS DOMAIN

Half of them read screens, half write settings and read them back; some keep their connection, some don't. Prints one
JSON object when stdin is closed: how many requests, and every one that failed. Nothing is tried twice.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import httpx

READERS, WRITERS = 4, 4
PAUSE_S = 0.2
TIMEOUT_S = 10.0


class Loop:
    """Run several users in parallel."""

    def __init__(self, address: str, domain: str) -> None:
        self._url, self._domain = f"https://{address}", domain
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.total = 0
        self.failed: list[dict[str, Any]] = []
        self.slowest_s = 0.0

    def run_until(self, stop: threading.Event) -> None:
        users = [threading.Thread(target=self._user, args=(number,)) for number in range(READERS + WRITERS)]
        for user in users:
            user.start()
        stop.wait()
        self._stop.set()
        for user in users:
            user.join()

    def _user(self, number: int) -> None:
        client = self._client()
        turn = 0
        while not self._stop.is_set():
            turn += 1
            if number % 2:  # a new connection each time
                client.close()
                client = self._client()
            if number < READERS:
                self._ask(client, "GET", "/api/parking" if turn % 2 else "/api/outing")
            else:
                body = {"parking_alerts": True, "outing_alerts": False, "min_free_spaces": turn % 1000}
                self._ask(client, "PUT", f"/api/settings/loop-{number}", body)
            time.sleep(PAUSE_S)
        client.close()

    def _client(self) -> httpx.Client:
        return httpx.Client(verify=False, timeout=TIMEOUT_S)  # the lab's certificate is its own

    def _ask(self, client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        began = time.monotonic()
        problem = None
        try:
            answer = client.request(
                method,
                self._url + path,
                json=body,
                headers={"Host": self._domain},
                extensions={"sni_hostname": self._domain},
            )
            if answer.status_code != 200:
                problem = f"{answer.status_code} {answer.text[:200]}"
            elif body and answer.json()["min_free_spaces"] != body["min_free_spaces"]:
                problem = f"wrote {body}, read {answer.text[:200]}"
        except (httpx.HTTPError, ValueError, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
        took = time.monotonic() - began
        with self._lock:
            self.total += 1
            self.slowest_s = max(self.slowest_s, took)
            if problem:
                self.failed.append({"at": time.time(), "request": f"{method} {path}", "problem": problem, "s": took})


def main() -> int:
    loop, stop = Loop(*sys.argv[1:3]), threading.Event()
    running = threading.Thread(target=loop.run_until, args=(stop,))
    running.start()
    sys.stdin.read()
    stop.set()
    running.join()
    print(json.dumps({"total": loop.total, "slowest_s": round(loop.slowest_s, 2), "failed": loop.failed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
