"""A release host in miniature: ranges, validators, faults, redirects; over HTTP or TLS with a CA of its own."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class File:
    """What the server does for one path.

    Attributes:
        etag, last_modified: validators, sent when not empty.
        ranges: whether it knows Range; if not it always sends everything.
        if_range: whether it honours If-Range; if not it sends the asked part of whatever it has.
        faults: one per request, taken first: an HTTP status, or ("cut", bytes) to hang up early.
        location: a redirect to there.
        length: whether it says Content-Length.
    """

    content: bytes = b""
    etag: str = '"one"'
    last_modified: str = ""
    ranges: bool = True
    if_range: bool = True
    faults: list[int | tuple[str, int]] = field(default_factory=list)
    location: str = ""
    length: bool = True
    delay: float = 0.0


@dataclass
class Request:
    """What a client asked."""

    path: str
    headers: dict[str, str]


class Server:
    """Files by path; every request is kept."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []

    def __setitem__(self, path: str, file: File) -> None:
        self.files[path] = file

    def asked(self, path: str) -> list[Request]:
        """The requests for one path."""
        return [request for request in self.requests if request.path == path]


@contextmanager
def serve(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server on a free loopback port."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    scheme = "https" if context else "http"
    if context:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    server = Server(f"{scheme}://127.0.0.1:{httpd.server_address[1]}")
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
        file = server.files.get(self.path.partition("?")[0])
        self.close_connection = True
        if file is None:
            self._empty(404)
        elif file.location:
            self._empty(302, {"Location": file.location})
        else:
            fault = file.faults.pop(0) if file.faults else 0
            if isinstance(fault, int) and fault:
                self._empty(fault)
            else:
                self._send(file, fault[1] if isinstance(fault, tuple) else None)

    def _send(self, file: File, cut: int | None) -> None:
        threading.Event().wait(file.delay)
        start = self._start(file)
        total = len(file.content)
        if start is not None and start >= total:
            self._empty(416, {"Content-Range": f"bytes */{total}"})
            return
        body = file.content[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if file.etag:
            self.send_header("ETag", file.etag)
        if file.last_modified:
            self.send_header("Last-Modified", file.last_modified)
        if file.length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])

    def _start(self, file: File) -> int | None:
        asked = self.headers.get("Range")
        if not asked or not file.ranges:
            return None
        validator = self.headers.get("If-Range")
        if file.if_range and validator not in (file.etag, file.last_modified):
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", "Connection": "close", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()


@dataclass(frozen=True)
class Trust:
    """TLS for a server on 127.0.0.1 and for clients that trust its CA."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def make_trust(directory: Path) -> Trust:
    """A CA and a certificate signed by it."""
    now = datetime.datetime.now(datetime.UTC)

    def build(subject: str, issuer: str, key: Any, signer: Any, *, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        return builder.sign(signer, hashes.SHA256())

    ca_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = build("test CA", "test CA", ca_key, ca_key, ca=True)
    leaf = build("release host", "test CA", leaf_key, ca_key, ca=False)
    chain = directory / "leaf.pem"
    pem = leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(pem + leaf.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    client = ssl.create_default_context(cadata=ca.public_bytes(serialization.Encoding.PEM).decode())
    return Trust(server, client)
