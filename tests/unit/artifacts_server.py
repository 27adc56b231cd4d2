"""A small release host: ranges, faults and redirects, over HTTP or TLS with its own CA."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class File:
    """The response for one path.

    Attributes:
        ranges: whether Range is honoured; if not, the whole content is sent.
        start: where a partial response begins, if not where it was asked for.
        faults: one per request, used first: an HTTP status, or ("cut", bytes) to close the connection early.
        location: a redirect to this address.
        length: whether Content-Length is sent.
        delay: seconds before the response.
        retry_after: the Retry-After of a fault that is a status.
    """

    content: bytes = b""
    ranges: bool = True
    start: int | None = None
    faults: list[int | tuple[str, int]] = field(default_factory=list)
    location: str = ""
    length: bool = True
    delay: float = 0.0
    retry_after: str = ""


@dataclass
class Request:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]


class Server:
    """Files by path, and every request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []

    def __setitem__(self, path: str, file: File) -> None:
        self.files[path] = file

    def paths(self) -> list[str]:
        """Return the requested paths in order."""
        return [request.path for request in self.requests]


@contextmanager
def serve(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server on a free loopback port."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    if context:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    server = Server(f"{'https' if context else 'http'}://127.0.0.1:{httpd.server_address[1]}")
    httpd.known = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server: Server = self.server.known  # type: ignore[attr-defined]
        server.requests.append(Request(self.path, dict(self.headers)))
        file = server.files.get(self.path.partition("?")[0], File(faults=[404]))
        fault = file.faults.pop(0) if file.faults else 0
        if file.location:
            self._answer(302, {"Location": file.location, "Set-Cookie": "session=1"})
        elif isinstance(fault, int) and fault:
            self._answer(fault, {"Retry-After": file.retry_after} if file.retry_after else {})
        else:
            threading.Event().wait(file.delay)
            self._send(file, None if isinstance(fault, int) else fault[1])

    def _send(self, file: File, cut: int | None) -> None:
        asked, total = self.headers.get("Range"), len(file.content)
        if not asked or not file.ranges:
            status, headers, body = 200, {}, file.content
        else:
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) if file.start is None else file.start
            if begin >= total:
                self._answer(416, {"Content-Range": f"bytes */{total}"})
                return
            status, headers, body = 206, {"Content-Range": f"bytes {begin}-{total - 1}/{total}"}, file.content[begin:]
        self._answer(status, headers, body, cut, length=file.length)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes = b"", cut: int | None = None, length: bool = True
    ) -> None:
        self.close_connection = True
        self.send_response(status)
        more = {"Content-Length": str(len(body))} if length else {}
        for name, value in {"Connection": "close", **more, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
