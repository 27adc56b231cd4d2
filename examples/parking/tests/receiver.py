"""A real HTTP server that keeps what it is sent: stands for the push gateway, the public source and Sentry."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request, its body decompressed."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """The running server. `respond` may be replaced at any time: request -> (status, JSON body)."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    respond: Callable[[Received], tuple[int, Any]] = lambda request: (200, {})

    def bodies(self) -> list[Any]:
        """The JSON bodies received."""
        return [json.loads(request.body) for request in self.requests]

    def sentry_events(self) -> list[dict[str, Any]]:
        """The events in the envelopes received (header line, then an item header and its payload, for each item)."""
        events = []
        for request in self.requests:
            lines = request.body.split(b"\n")
            for number, line in enumerate(lines[1:-1], start=1):
                if line.startswith(b'{"type":') and json.loads(line)["type"] == "event":
                    events.append(json.loads(lines[number + 1]))
        return events


@contextmanager
def receiver(respond: Callable[[Received], tuple[int, Any]] | None = None) -> Iterator[Receiver]:
    """Listens on a free loopback port until the block ends."""
    state = Receiver()
    if respond:
        state.respond = respond

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Received(self.command, self.path, headers, body)
            state.requests.append(request)
            status, document = state.respond(request)
            answer = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _answer  # noqa: N815 - names set by http.server

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
