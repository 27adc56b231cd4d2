"""Test double of Cloudflare's published API, version 4: zones, DNS records, pages, errors.

Tests and rehearsals use it, so no real records change. It needs the standard library only, because a test runs this
file on a machine. It also returns a client's address, as /cdn-cgi/trace does.

    python3 cloudflare.py PORT ZONE TOKEN STATE_FILE
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PREFIX = "/client/v4"
_DEFAULTS = {"proxied": False, "comment": None}
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Request:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    authorization: str
    body: dict[str, Any]


@dataclass
class Zone:
    id: str
    records: list[dict[str, Any]] = field(default_factory=list)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing: some tests close the connection early."""


class FakeCloudflare:
    """The server, as a context manager. It listens at `api_url` and `address_url`.

    Attributes:
        tokens: token -> zones that it may edit, or only read if the zone is in `read_only`.
        next_answers: sent instead of the real answers, one per request; None sends the real one.
        canned: sent instead of every real answer, if `next_answers` is empty.
        hang_up: number of next requests whose connection is closed without an answer.
        cut_after: number of next changes that are made, but whose answer is lost.
        ignores_changes: PATCH, PUT and POST answer with success but change nothing.
        ignores_fields: fields that a PATCH ignores in the same way.
        ignores_filters: list all zones, whatever name is requested.
        delayed: number of next reads that return the records from before the last change.
        delay_s: delay before each answer, seconds.
        address: address that /cdn-cgi/trace returns; None for the client's own.
        seen: all requests, in order.
        changed: called after each request that may have changed something.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.zones: dict[str, Zone] = {}
        self.tokens: dict[str, set[str]] = {}
        self.read_only: set[str] = set()
        self.next_answers: list[Answer | None] = []
        self.hang_up = 0
        self.cut_after = 0
        self.ignores_changes = False
        self.ignores_fields: set[str] = set()
        self.ignores_filters = False
        self.delayed = 0
        self.address: str | None = None
        self.canned: Answer | None = None
        self.delay_s = 0.0
        self.seen: list[Request] = []
        self.changed: Callable[[], None] = lambda: None
        self._before: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.RLock()
        self._server = _QuietServer((host, port), self._handler())
        base = f"http://{host}:{self._server.server_address[1]}"
        self.api_url = base + PREFIX
        self.address_url = f"{base}/cdn-cgi/trace"

    def __enter__(self) -> FakeCloudflare:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_zone(self, name: str, token: str) -> Zone:
        zone = self.zones.setdefault(name, Zone(id=f"{len(self.zones) + 1:032x}"))
        self.tokens.setdefault(token, set()).add(name)
        return zone

    def add_record(self, zone: str, name: str, kind: str, content: str, **more: Any) -> dict[str, Any]:
        return self.insert(zone, {"name": name, "type": kind, "content": content} | more)

    def insert(self, zone: str, fields: dict[str, Any]) -> dict[str, Any]:
        number = sum(len(each.records) for each in self.zones.values()) + 1
        record = {"id": f"{number:032x}", "ttl": 300} | _DEFAULTS | fields
        self.zones[zone].records.append(record)
        return record

    def the(self, name: str, kind: str) -> dict[str, Any]:
        """Return the only record of that name and type."""
        (found,) = (
            record
            for zone in self.zones.values()
            for record in zone.records
            if (record["name"], record["type"]) == (name, kind)
        )
        return found

    def changes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return method and body of every request other than GET."""
        return [(each.method, each.body) for each in self.seen if each.method != "GET"]

    def answer(self, request: Request) -> Answer:
        zones = self.tokens.get(request.authorization.removeprefix("Bearer "))
        if not re.fullmatch(r"Bearer [A-Za-z0-9_-]{8,}", request.authorization):
            chain = [{"code": 6111, "message": "Invalid format for Authorization header"}]
            return _failure(400, 6003, "Invalid request headers", error_chain=chain)
        if zones is None:
            return _failure(403, 9109, "Invalid access token")
        path = request.path.removeprefix(PREFIX)
        if path == "/zones" and request.method == "GET":
            wanted = request.query.get("name")
            found = [
                {"id": zone.id, "name": name, "status": "active"}
                for name, zone in sorted(self.zones.items())
                if name in zones and (wanted is None or self.ignores_filters or name in wanted)
            ]
            return _page(found, request.query, default=20, most=100)
        match = re.fullmatch(r"/zones/(\w+)/dns_records(?:/(\w+))?", path)
        reached = {self.zones[name].id: name for name in zones}
        if match is None:
            return _failure(404, 7000, "No route for that URI")
        if match[1] not in reached:
            return _failure(403, 10000, "Authentication error")
        name = reached[match[1]]
        if request.method != "GET" and name in self.read_only:
            return _failure(403, 10000, "Authentication error")
        return self._records(request, name, match[2])

    def _records(self, request: Request, zone: str, record_id: str | None) -> Answer:
        records = self.zones[zone].records
        if request.method == "GET":
            shown = records
            if self.delayed and zone in self._before:
                self.delayed -= 1
                shown = self._before[zone]
            return _page(shown, request.query, default=100, most=5_000_000)
        self._before[zone] = [dict(record) for record in records]
        if request.method == "POST":
            return self._create(zone, request.body)
        found = next((record for record in records if record["id"] == record_id), None)
        if found is None:
            return _failure(404, 81044, "Record does not exist.")
        # PUT overwrites: what it leaves out gets its default.
        body = (_DEFAULTS if request.method == "PUT" else {}) | request.body
        problem = _invalid(found | body)
        if problem:
            return problem
        if not self.ignores_changes:
            found |= {name: value for name, value in body.items() if name not in self.ignores_fields}
        return _success(found | body)

    def _create(self, zone: str, body: dict[str, Any]) -> Answer:
        problem = _invalid(body)
        if problem:
            return problem
        named = [each for each in self.zones[zone].records if each["name"] == body["name"]]
        if any((each["type"], each["content"]) == (body["type"], body["content"]) for each in named):
            return _failure(400, 81058, "An identical record already exists.")
        if any(each["type"] == "CNAME" for each in named) or (body["type"] == "CNAME" and named):
            return _failure(400, 81053, "An A, AAAA, or CNAME record with that host already exists.")
        if self.ignores_changes:
            return _success(body | {"id": "f" * 32})
        return _success(self.insert(zone, body))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                if url.path == "/cdn-cgi/trace":
                    self._send((200, {}, f"fl=1\nip={server.address or self.client_address[0]}\nts=1\n".encode()))
                    return
                request = Request(
                    self.command, url.path, parse_qs(url.query), self.headers.get("Authorization") or "", body
                )
                with server._lock:
                    server.seen.append(request)
                    if server.hang_up:
                        server.hang_up -= 1
                        return
                    prepared = server.next_answers.pop(0) if server.next_answers else server.canned
                    answer = prepared or server.answer(request)
                    if self.command != "GET":
                        server.changed()
                    if self.command != "GET" and server.cut_after:
                        server.cut_after -= 1
                        return
                time.sleep(server.delay_s)
                self._send(answer)

            do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

            def _send(self, answer: Answer) -> None:
                status, headers, content = answer
                self.send_response(status)
                for name, value in ({"Content-Type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _invalid(record: dict[str, Any]) -> Answer | None:
    if record["ttl"] != 1 and not 60 <= record["ttl"] <= 86400:
        return _failure(400, 9021, "TTL must be between 60 and 86400 seconds, or 1 for Automatic.")
    if record.get("proxied") and record["ttl"] != 1:
        return _failure(400, 9021, "TTL of a proxied record must be automatic.")
    if record["type"] == "A" and not re.fullmatch(r"\d+(\.\d+){3}", record["content"]):
        return _failure(400, 9005, "Content for A record must be a valid IPv4 address.")
    if len(record.get("comment") or "") > 100:
        return _failure(400, 9313, "DNS record comment exceeds the limit of 100 characters.")
    return None


def _success(result: Any, **more: Any) -> Answer:
    body = {"success": True, "errors": [], "messages": [], "result": result} | more
    return 200, {}, json.dumps(body).encode()


def _failure(status: int, code: int, message: str, **more: Any) -> Answer:
    error = {"code": code, "message": message} | more
    return status, {}, json.dumps({"success": False, "errors": [error], "messages": [], "result": None}).encode()


def _page(items: list[Any], query: dict[str, list[str]], default: int, most: int) -> Answer:
    page = int(query.get("page", ["1"])[0])
    size = int(query.get("per_page", [str(default)])[0])
    if not 1 <= size <= most:
        return _failure(400, 1004, "per_page is out of range")
    shown = items[(page - 1) * size : page * size]
    info = {
        "page": page,
        "per_page": size,
        "count": len(shown),
        "total_count": len(items),
        "total_pages": -(-len(items) // size),
    }
    return _success(shown, result_info=info)


def _main(port: str, zone: str, token: str, state: str) -> None:
    path = Path(state)
    fake = FakeCloudflare(int(port))
    fake.add_zone(zone, token)
    settings = json.loads(path.read_text())
    fake.address = settings["address"]
    for record in settings["records"]:
        fake.insert(zone, record)

    def write() -> None:
        path.write_text(json.dumps({"address": fake.address, "records": fake.zones[zone].records}))

    fake.changed = write
    fake._server.serve_forever()


if __name__ == "__main__":
    _main(*sys.argv[1:])
