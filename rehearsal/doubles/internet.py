"""Test double of the internet: a proxy behind which hosts of the lab answer under the names of real ones.

A client uses it as it uses the proxy of a company: `HTTPS_PROXY` names it, and `SSL_CERT_FILE` the authority that
signed the certificates of the hosts. No client needs a setting of its own, and no request leaves this computer: a host
that the lab does not play is refused.

    with Internet(folder, ["files.example"]) as internet:
        internet.files["https://files.example/v1/program"] = Path("program")
        subprocess.run(["curl", …], env=os.environ | internet.environment())
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from rehearsal.doubles.tls_authority import Authority

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Answer:
    """An answer to a request.

    Attributes:
        content: the body, or the file that contains it.
        begin: the first byte of it that is sent.
        cut_after: number of bytes after which the connection is closed; None to send all.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path = b""
    begin: int = 0
    cut_after: int | None = None

    @property
    def size(self) -> int:
        """Return the number of bytes of the whole content."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Request:
    """A request as it arrived. Those to a host with its own TLS are seen as "CONNECT" only."""

    method: str
    url: str
    headers: Mapping[str, str]


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing: tests close connections early."""


class Internet:
    """The proxy and the hosts, as a context manager.

    Args:
        folder: where the keys and certificates are written.
        hosts: names of all hosts.

    Attributes:
        files: content by address.
        redirects: where to by address.
        pages: what answers by host name, instead of files.
        servers: port on the loopback address by host name, of a server that has its own TLS.
        faults: answers by address or host name that are given first, one per request.
        seen: the requests in order.
        proxy: address of the proxy on the loopback address.
    """

    def __init__(self, folder: Path, hosts: Iterable[str]) -> None:
        self.authority = Authority(folder, "127.0.0.1", *hosts)
        self.hosts = frozenset(hosts)
        self.files: dict[str, bytes | Path] = {}
        self.redirects: dict[str, str] = {}
        self.pages: dict[str, Callable[[Request], Answer]] = {}
        self.servers: dict[str, int] = {}
        self.faults: dict[str, list[Answer]] = {}
        self.seen: list[Request] = []
        self._proxies: list[_QuietServer] = []
        self.proxy = ""

    def __enter__(self) -> Internet:
        self.proxy = self.listen(socket.create_server(("127.0.0.1", 0)))
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            proxy.shutdown()
            proxy.server_close()

    def listen(self, listening: socket.socket) -> str:
        """Serve as a proxy on a socket that listens, and return the proxy's address."""
        host, port = listening.getsockname()
        proxy = _QuietServer((host, port), self._handler(), bind_and_activate=False)
        proxy.socket.close()
        proxy.socket = listening
        self._proxies.append(proxy)
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://{host}:{port}"

    def environment(self) -> dict[str, str]:
        """Return the variables by which a program uses this internet instead of the real one."""
        return {"HTTPS_PROXY": self.proxy, "SSL_CERT_FILE": str(self.authority.bundle)}

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request: a fault that waits for it, else what the host publishes."""
        url = request.url.partition("?")[0]
        host = urlsplit(url).hostname or ""
        for key in (url, host):
            if self.faults.get(key):
                return self._part(self.faults[key].pop(0), request)
        if host in self.pages:
            return self.pages[host](request)
        if url in self.redirects:
            return Answer(302, {"Location": self.redirects[url]})
        if url not in self.files:
            return Answer(404)
        return self._part(Answer(content=self.files[url]), request)

    def _part(self, whole: Answer, request: Request) -> Answer:
        """Return the part of a file that the request asks for (RFC 9110, section 14)."""
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if not asked or whole.status != 200:
            return whole
        begin = int(asked[1])
        if begin >= whole.size:
            return Answer(416, {"Content-Range": f"bytes */{whole.size}"})
        headers = {"Content-Range": f"bytes {begin}-{whole.size - 1}/{whole.size}"}
        return Answer(206, headers, whole.content, begin, whole.cut_after)

    def _handler(internet) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            host = ""

            def do_CONNECT(self) -> None:
                host = self.path.rpartition(":")[0]
                internet.seen.append(Request("CONNECT", f"https://{host}", {}))
                if host not in internet.hosts:
                    self.close_connection = True
                    self.send_error(502, "The lab's internet does not have this host")
                    return
                self.send_response(200)
                self.end_headers()
                if host in internet.servers and not internet.faults.get(host):
                    self.close_connection = True
                    _tunnel(self.connection, internet.servers[host])
                    return
                self.host = host
                self.request = internet.authority.server.wrap_socket(self.connection, server_side=True)
                self.setup()

            def do_GET(self) -> None:
                if not self.host:
                    self.close_connection = True
                    self.send_error(501, "The lab's internet has https only")
                    return
                request = Request(self.command, f"https://{self.host}{self.path}", dict(self.headers))
                internet.seen.append(request)
                self._send(internet.answer(request))

            do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

            def _send(self, answer: Answer) -> None:
                self.close_connection = True
                self.send_response(answer.status)
                length = {"Content-Length": str(answer.size - answer.begin), "Connection": "close"}
                for name, value in (length | dict(answer.headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                end = answer.size if answer.cut_after is None else answer.begin + answer.cut_after
                if isinstance(answer.content, bytes):
                    self.wfile.write(answer.content[answer.begin : end])
                    return
                with answer.content.open("rb") as file:
                    file.seek(answer.begin)
                    while part := file.read(min(_CHUNK, end - file.tell())):
                        self.wfile.write(part)

            def finish(self) -> None:
                super().finish()
                self.request.close()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _tunnel(client: socket.socket, port: int) -> None:
    """Copy bytes in both directions until both sides have ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as server:
        server.settimeout(None)
        client.settimeout(None)
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(_CHUNK):
            target.sendall(part)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
