"""Test double of Loki on a lab machine: accept pushed logs as strictly as Loki, and write the accepted lines to a file.

    python3 strict_loki.py PORT FILE

Every fifth request with a message of a test is answered 503, so that what is sent again is tried as well. The older
lines of the machine's journal, which come first, are taken without a pause. What Loki would refuse gets 400 and a line
REFUSED in the file.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

OF_A_TEST = b'"fuzz-'


def demand(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def lines_of(body: bytes) -> list[str]:
    """Return the lines in a push request. Raises ValueError for a request that Loki refuses."""
    # Strict: no control characters in strings, no invalid UTF-8; NaN is no JSON.
    found: Any = json.loads(body.decode("utf-8"), parse_constant=lambda name: demand(False, name))
    demand(list(found) == ["streams"], "keys")
    lines = []
    for stream in found["streams"]:
        demand(set(stream) == {"stream", "values"}, "keys of a stream")
        labels = stream["stream"]
        demand({"service", "level"} <= set(labels) <= {"service", "level", "process"}, "labels")
        demand(all(isinstance(value, str) and value for value in labels.values()), "values of labels")
        for at, line, metadata in stream["values"]:
            demand(isinstance(at, str) and at.isdigit() and len(at) == 19, "time in nanoseconds")
            demand(isinstance(line, str), "line")
            demand(all(isinstance(value, str) for value in metadata.values()), "metadata")
            lines.append(line)
    return lines


class Handler(BaseHTTPRequestHandler):
    requests = 0
    """With a message of a test."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Handler.requests += OF_A_TEST in body
        if OF_A_TEST in body and Handler.requests % 5 == 0:
            self.answer(503)
            return
        try:
            taken = lines_of(body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.write(f"REFUSED {error}: {body[:200]!r}")
            self.answer(400)
            return
        self.write("\n".join(json.dumps(line) for line in taken))
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def write(self, line: str) -> None:
        with open(sys.argv[2], "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def log_message(self, *_: object) -> None:
        # It would go to the journal, and be sent here again.
        pass


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
