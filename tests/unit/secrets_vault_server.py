"""A small server that answers as the published API of Vault's KV version 2 engine, tokens and AppRole does.

Error texts are those that OpenBao 2.5 gave when asked; `says_invalid_token` adds what Vault says to unknown tokens.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, Any] | None]


@dataclass
class Token:
    """What a token may do: capabilities by path; `...` for all of them."""

    policy: dict[str, set[str]] = field(default_factory=dict)
    all: bool = False
    may_look_itself_up: bool = True


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up or refuses the certificate is what some tests are about."""


class FakeVault:
    """Use as a context manager; `url` is where it listens.

    Args:
        tls: server context, or None for plain HTTP.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.sealed = False
        self.says_invalid_token = False
        self.namespaces = {""}
        self.tokens: dict[str, Token] = {"root-token": Token(all=True)}
        self.roles: dict[tuple[str, str], str] = {}
        self.versions: dict[str, list[dict[str, Any] | None]] = {}
        self.canned: tuple[int, dict[str, str], bytes] | None = None
        self.delay_s = 0.0
        self.before_write = lambda: None
        self.seen: list[Seen] = []
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeVault:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, path: str, fields: dict[str, Any] | None) -> None:
        """A new version at a path below `secret/`; None is a deleted one."""
        self.versions.setdefault(path, []).append(fields)

    def get(self, path: str) -> dict[str, Any] | None:
        return self.versions[path][-1]

    def answer(self, method: str, target: str, headers: dict[str, str], body: dict[str, Any]) -> Answer:
        url = urlsplit(target)
        path, listing = url.path.removeprefix("/v1/"), parse_qs(url.query).get("list") == ["true"]
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if headers.get("X-Vault-Namespace", "") not in self.namespaces:
            return 404, {"errors": ["namespace not found"]}
        if path == "auth/approle/login":
            return self._log_in(body)
        token = self.tokens.get(headers.get("X-Vault-Token", ""))
        if token is None and self.says_invalid_token:
            return 403, {"errors": ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}
        if token is None:
            return 403, {"errors": ["permission denied"]}
        if path == "auth/token/lookup-self":
            return (200, {"data": {"ttl": 60}}) if token.may_look_itself_up else self._denied()
        mount, _, rest = path.partition("/")
        if mount != "secret":
            return 404, {"errors": [f'no handler for route "{path}". route entry not found.']}
        return self._kv(method, rest, listing, token, body)

    def _kv(self, method: str, path: str, listing: bool, token: Token, body: dict[str, Any]) -> Answer:
        kind, _, key = path.partition("/")
        capability = "list" if listing else {"GET": "read", "POST": "write"}[method]
        if not token.all and capability not in token.policy.get(f"{kind}/{key}", set()):
            return self._denied()
        if kind == "metadata" and listing:
            below = sorted({path.removeprefix(f"{key}/") for path in self.versions if path.startswith(f"{key}/")})
            keys = sorted({name if "/" not in name else name.split("/")[0] + "/" for name in below})
            return (200, {"data": {"keys": keys}}) if keys else (404, {"errors": []})
        return self._read(key) if method == "GET" else self._write(key, body)

    def _read(self, key: str) -> Answer:
        versions = self.versions.get(key, [])
        if not versions:
            return 404, {"errors": []}
        deleted = versions[-1] is None
        metadata = {
            "version": len(versions),
            "deletion_time": "2026-01-01T00:00:00Z" if deleted else "",
            "destroyed": False,
        }
        return (404 if deleted else 200), {"data": {"data": versions[-1], "metadata": metadata}}

    def _write(self, key: str, body: dict[str, Any]) -> Answer:
        self.before_write()
        expected = body.get("options", {}).get("cas")
        if expected is not None and expected != len(self.versions.get(key, [])):
            return 400, {"errors": ["check-and-set parameter did not match the current version"]}
        self.put(key, body["data"])
        return 200, {"data": {"version": len(self.versions[key]), "deletion_time": "", "destroyed": False}}

    def _log_in(self, body: dict[str, Any]) -> Answer:
        token = self.roles.get((body.get("role_id", ""), body.get("secret_id", "")))
        if token is None:
            return 400, {"errors": ["invalid role or secret ID"]}
        return 200, {"data": None, "auth": {"client_token": token, "lease_duration": 60}}

    @staticmethod
    def _denied() -> Answer:
        return 403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        vault = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                vault.seen.append(Seen(self.command, self.path, dict(self.headers)))
                time.sleep(vault.delay_s)
                if vault.canned:
                    status, headers, content = vault.canned
                else:
                    status, data = vault.answer(self.command, self.path, dict(self.headers), body)
                    headers, content = {"Content-Type": "application/json"}, json.dumps(data).encode()
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler
