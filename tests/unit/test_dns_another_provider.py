"""The cutover at a provider without comments and proxies: DigitalOcean's published API, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from minipc.dns.lexicon_provider import LexiconProvider
from minipc.dns.records import Record
from playbooks import dns_cutover

ZONE = "example.org"
TOKEN = "t0ken-for_example-org"
OLD, NEW = "1" * 36, "2" * 36


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.records: list[dict[str, Any]] = []
        self.paths: list[str] = []

    def add(self, name: str, kind: str, data: str, ttl: int = 1800) -> None:
        self.records.append({"id": len(self.records) + 1, "type": kind, "name": name, "data": data, "ttl": ttl})


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.server.paths.append(self.path)
        if "name" in body:
            body["name"] = body["name"] or "@"
        if self.command == "POST":
            self.server.add(body["name"], body["type"], body["data"], body["ttl"])
        if self.command == "PUT":
            self.server.records[int(self.path.rsplit("/", 1)[1]) - 1] |= body
        content = json.dumps({"domain": {}, "domain_records": self.server.records}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def test_the_records_lead_to_the_new_machine(server: Server) -> None:
    server.add("service", "A", "198.51.100.7")
    server.add("@", "A", "198.51.100.7")
    server.add("_minipc.service", "TXT", f"minipc {OLD}")
    server.add("mail", "A", "198.51.100.9")
    url = f"http://127.0.0.1:{server.server_address[1]}"
    provider = LexiconProvider("digitalocean", ZONE, json.dumps({"auth_token": TOKEN}), {}, url)
    wanted = [Record(name, "A", "198.51.100.8", 60).held_by(NEW) for name in (f"service.{ZONE}", ZONE)]
    said: list[str] = []
    dns_cutover.cutover(provider, wanted, said.append)
    assert [(each["name"], each["data"], each["ttl"]) for each in server.records] == [
        ("service", "198.51.100.8", 60),
        ("@", "198.51.100.8", 60),
        ("_minipc.service", f"minipc {NEW}", 300),
        ("mail", "198.51.100.9", 1800),
        ("_minipc", f"minipc {NEW}", 300),
    ]
    assert dns_cutover.plan(provider, wanted) == []
    assert f"held by {OLD} -> {NEW}" in said[0]
    assert TOKEN not in "".join(server.paths + said)
