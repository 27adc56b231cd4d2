"""Access to Loki's HTTP interface on the machine itself."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.verify.conftest import Shell, eventually, not_exercised

UNIT = "loki.service"


@dataclass(frozen=True)
class Line:
    """A log line and its labels."""

    text: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Loki:
    """Requests to Loki's HTTP interface."""

    sh: Shell
    port: int

    def request(self, path: str, body: Any = None) -> tuple[int, str]:
        """Send a request; return the HTTP status (0 if there is no answer) and the body."""
        data = f"-H 'Content-Type: application/json' --data-binary {shlex.quote(json.dumps(body))}" if body else ""
        url = shlex.quote(f"http://127.0.0.1:{self.port}{path}")
        answer, _, code = self.sh(f"curl -s -w '\\n%{{http_code}}' --max-time 20 {data} {url} || true").rpartition("\n")
        return int(code), answer

    def push(self, line: str, **metadata: str) -> tuple[int, str]:
        """Store a line with structured metadata; return the HTTP status and the body."""
        entry = [str(time.time_ns()), line, metadata]
        stream = {"stream": {"service": "minipc-verify", "level": "info"}, "values": [entry]}
        return self.request("/loki/api/v1/push", {"streams": [stream]})

    def find(self, logql: str, limit: int = 5000) -> list[Line]:
        """Return the lines of the last hour that a query finds, oldest first; none while Loki does not answer."""
        start = int((time.time() - 3600) * 1e9)
        query = {"query": logql, "start": start, "limit": limit, "direction": "forward"}
        code, answer = self.request("/loki/api/v1/query_range?" + urlencode(query))
        if code != 200:
            assert code in (0, 500, 502, 503, 504), f"{logql}: {answer}"
            return []
        streams = json.loads(answer)["data"]["result"]
        return [Line(value[1], stream["stream"]) for stream in streams for value in stream["values"]]

    def ready(self, within_s: float = 90) -> bool:
        """Return True as soon as Loki is ready, False after `within_s` seconds."""
        return bool(eventually(lambda: self.request("/ready")[0] == 200, within_s=within_s, every_s=0.5))


def loki_there(sh: Shell, port: int) -> Loki:
    """Return Loki once it is ready; NOT EXERCISED on a machine without it."""
    if sh(f"systemctl cat {UNIT} >/dev/null 2>&1 && echo yes || echo no") != "yes":
        not_exercised("the artifact loki is not available; the journal keeps the logs")
    loki = Loki(sh, port)
    assert loki.ready(), "not ready within 90 s"
    return loki
