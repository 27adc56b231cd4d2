#!/usr/bin/python3
"""Watches the service from outside: asks its public address, waits for the machine's ping, and looks at the machine it
runs on: its units, its disk, the copies of the backups. Tells when something is wrong.

Written by minipc (templates/watcher/watcher.py). It runs on another machine and tells by channels of its own: whoever
watches from the machine itself can't see its power, its provider or the public name fail.

    watcher SETTINGS.json CHANNELS.json
"""

from __future__ import annotations

import hmac
import http.client
import json
import os
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NOTIFY_TIMEOUT_S = 15
# What could not be told is kept and told later; the oldest goes when there is too much of it.
WAITING_MESSAGES = 50
# The ping's port is open to everybody: what strangers can take of memory, threads and time. A ping is far smaller.
CONNECTIONS, CONNECTIONS_PER_ADDRESS = 24, 4
CONNECTION_S = 15
REQUEST_BYTES = 16384

# What it sees of the machine it runs on: what is told, and how.
HERE = {
    "units": ("the off-site machine", "has failed units"),
    "disk": ("the off-site disk", "fills up"),
    "copies": ("the off-site copy of the backups", "is not well"),
}


@dataclass
class Trouble:
    """Something that is watched.

    Attributes:
        failures: how often in a row it failed.
        since: when the first of them was, epoch seconds; 0 when all is well.
        told: when it was last told, epoch seconds; 0: not yet.
        reason: of the last failure.
    """

    failures: int = 0
    since: float = 0
    told: float = 0
    reason: str = ""


@dataclass
class State:
    """What survives a restart."""

    service: Trouble = field(default_factory=Trouble)
    ping: Trouble = field(default_factory=Trouble)
    units: Trouble = field(default_factory=Trouble)
    disk: Trouble = field(default_factory=Trouble)
    copies: Trouble = field(default_factory=Trouble)
    began: float = 0
    pinged_at: float = 0
    unwell: bool = False
    waiting: list[dict[str, str]] = field(default_factory=list)


def load_state(path: Path, now: float) -> State:
    """What was known before; nothing when there is no file, or none that can be read."""
    try:
        found = json.loads(path.read_text())
        troubles = {name: Trouble(**found.pop(name)) for name in ("service", "ping")}
        # An earlier watcher knew of two.
        troubles |= {name: Trouble(**found.pop(name, {})) for name in HERE}
        return State(**{"began": now} | troubles | found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # The first ping has as much time as any other, and so has the first copy.
        return State(began=now, pinged_at=now)


def save_state(path: Path, state: State) -> None:
    candidate = path.with_suffix(".new")
    candidate.write_text(json.dumps(asdict(state)))
    candidate.rename(path)


class Connection(http.client.HTTPSConnection):
    """HTTPS to an address that the name need not lead to."""

    address: str | None = None

    def connect(self) -> None:
        raw = socket.create_connection((self.address or self.host, self.port), self.timeout)
        self.sock = self._context.wrap_socket(raw, server_hostname=self.host)  # type: ignore[attr-defined]


def probe(settings: dict[str, Any]) -> str:
    """Why the public address doesn't answer 200; empty when it does. DNS, TLS and time count."""
    parts = urlsplit(settings["url"])
    host, path = parts.hostname or "", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if not settings["verify_tls"]:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = Connection(host, parts.port or 443, timeout=settings["timeout_s"], context=context)
        connection.address = settings["address"]
    else:
        connection = http.client.HTTPConnection(
            settings["address"] or host, parts.port or 80, timeout=settings["timeout_s"]
        )
    try:
        connection.request("GET", path, headers={"Host": parts.netloc, "User-Agent": "minipc-watcher"})
        answer = connection.getresponse()
        answer.read(65536)
        return "" if answer.status == 200 else f"answers {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def failed_units() -> str:
    """Names of the units that have failed; empty when none has."""
    argv = ["systemctl", "list-units", "--state=failed", "--plain", "--no-legend"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"systemd can't be asked: {type(error).__name__}"
    return ", ".join(sorted(line.split()[0] for line in done.stdout.splitlines() if line.strip()))


def short_of_disk(paths: list[str], free_percent: int) -> str:
    """Which file systems have less than that left."""
    short = []
    for path in paths:
        try:
            status = os.statvfs(path)
        except FileNotFoundError:
            # Not an off-site machine, only a watcher.
            continue
        except OSError as error:
            short.append(f"{path}: {error.strerror}")
            continue
        if status.f_bavail * 100 < free_percent * status.f_blocks:
            short.append(f"{path} has {status.f_bavail * 100 // status.f_blocks} % left")
    return "; ".join(short)


def copies_not_well(status: str, age_s: int, began: float, now: float) -> str:
    """What the last copy said was wrong, or that none went well for too long."""
    try:
        found = json.loads(Path(status).read_text())
        at, trouble = float(found["at"]), str(found["trouble"])
    except FileNotFoundError:
        at, trouble = 0.0, ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{status} can't be read: {type(error).__name__}"
    if trouble or now - max(at, began) <= age_s:
        return trouble
    return f"none went well for more than {age_s // 3600} h"


def look_here(settings: dict[str, Any], began: float, now: float) -> dict[str, str]:
    """What is wrong with the machine it runs on, by its name in State; empty when nothing is."""
    age_s = settings["copy_age_s"]
    return {
        "units": failed_units(),
        "disk": short_of_disk(settings["disks"], settings["disk_free_percent"]),
        "copies": "" if age_s is None else copies_not_well(settings["copy_status"], age_s, began, now),
    }


class Watch:
    """Decides what is told and when.

    Args:
        settings: url, address, verify_tls, interval_s, timeout_s, failures, ping_grace_s (None: no ping is expected),
            repeat_s, name.
        tell: sends a message by all channels; returns False when one of them failed.
    """

    def __init__(self, settings: dict[str, Any], state: State, tell: Any, clock: Any = time.time) -> None:
        self.settings = settings
        self.state = state
        self.tell = tell
        self.clock = clock
        self.lock = threading.Lock()

    def probed(self, reason: str) -> None:
        """A probe is done; `reason` is empty when it went well."""
        with self.lock:
            self._judge(self.state.service, reason, self.settings["failures"], "the service", "does not answer")

    def looked(self, found: dict[str, str]) -> None:
        """It has looked at the machine it runs on: what is wrong there, by the name in State."""
        with self.lock:
            for name, reason in found.items():
                trouble: Trouble = getattr(self.state, name)
                if name != "disk" and reason != trouble.reason:
                    # Another unit, another trouble: not to be kept until the first is told again.
                    trouble.told = 0 if reason else trouble.told
                self._judge(trouble, reason, self.settings["failures"], *HERE[name])

    def pinged(self) -> None:
        """The machine has pinged."""
        with self.lock:
            self.state.pinged_at, self.state.unwell = self.clock(), False
            self._look_at_ping()

    def failed(self) -> None:
        """The machine itself says that it is not well."""
        with self.lock:
            self.state.pinged_at, self.state.unwell = self.clock(), True
            self._look_at_ping()

    def look_at_ping(self) -> None:
        """Whether the last ping is too long ago."""
        with self.lock:
            self._look_at_ping()

    def _look_at_ping(self) -> None:
        grace = self.settings["ping_grace_s"]
        if grace is None:
            return
        silent = self.clock() - self.state.pinged_at
        reason = "it says so itself" if self.state.unwell else ""
        if silent > grace:
            reason = f"no ping for {int(silent)} s, at most {grace} s are allowed"
        self._judge(self.state.ping, reason, 1, "the machine's own monitoring", "is not well")

    def _judge(self, trouble: Trouble, reason: str, enough: int, what: str, verb: str) -> None:
        now = self.clock()
        if not reason:
            if trouble.told:
                self._say("resolved", f"{what} is back after {_minutes(now - trouble.since)}")
            trouble.failures, trouble.since, trouble.told, trouble.reason = 0, 0, 0, ""
            return
        trouble.failures += 1
        trouble.since = trouble.since or now
        trouble.reason = reason
        due = not trouble.told or now - trouble.told >= self.settings["repeat_s"]
        if trouble.failures >= enough and due:
            trouble.told = now
            self._say("firing", f"{what} {verb}: {reason}")

    def _say(self, status: str, text: str) -> None:
        message = {
            "status": status,
            "name": self.settings["name"],
            "text": f"{'DOWN' if status == 'firing' else 'UP'} {self.settings['name']}: {text}",
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock())),
            "from": socket.gethostname(),
        }
        self.state.waiting = [*self.state.waiting, message][-WAITING_MESSAGES:]

    def deliver(self) -> None:
        """Tells what waits, oldest first, and stops at the first that can't be told."""
        while True:
            with self.lock:
                message = self.state.waiting[0] if self.state.waiting else None
            if message is None or not self.tell(message):
                return
            with self.lock:
                if self.state.waiting and self.state.waiting[0] is message:
                    self.state.waiting.pop(0)


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def tell(channels: list[dict[str, Any]], message: dict[str, str]) -> bool:
    """Sends it by each channel; True when at least one took it: then somebody knows. The journal has it anyway."""
    print(f"<{'2' if message['status'] == 'firing' else '5'}>{message['text']}", flush=True)
    others = [channel for channel in channels if channel["kind"] != "journal"]
    taken = 0
    for channel in others:
        try:
            {"webhook": _webhook, "ntfy": _ntfy, "email": _email}[channel["kind"]](channel, message)
            taken += 1
        except (OSError, http.client.HTTPException, smtplib.SMTPException, ValueError) as error:
            # Never its address: it is a secret.
            print(f"<3>channel {channel['kind']} failed: {type(error).__name__}", flush=True)
    return taken > 0 or not others


def _post(url: str, body: bytes, headers: dict[str, str]) -> None:
    headers = {"User-Agent": "minipc-watcher"} | headers
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 - the operator's own
    with urllib.request.urlopen(request, timeout=NOTIFY_TIMEOUT_S) as answer:  # noqa: S310
        answer.read(65536)


def _webhook(channel: dict[str, Any], message: dict[str, str]) -> None:
    # Slack and its like read `text`.
    _post(channel["url"], json.dumps(message).encode(), {"Content-Type": "application/json"})


def _ntfy(channel: dict[str, Any], message: dict[str, str]) -> None:
    firing = message["status"] == "firing"
    headers = {"Title": message["name"], "Priority": "urgent" if firing else "default"}
    _post(channel["url"], message["text"].encode(), headers | {"Tags": "rotating_light" if firing else "ok_hand"})


def _email(channel: dict[str, Any], message: dict[str, str]) -> None:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = channel["sender"], channel["to"], message["text"][:200]
    mail.set_content(json.dumps(message, indent=1))
    with smtplib.SMTP(channel["server"], channel["port"], timeout=NOTIFY_TIMEOUT_S) as server:
        server.starttls(context=ssl.create_default_context())
        if channel.get("password"):
            server.login(channel["user"], channel["password"])
        server.send_message(mail)


class Bounded:
    """What a client sends, up to a limit; afterwards it is at its end."""

    def __init__(self, file: Any, limit: int) -> None:
        self.file, self.left = file, limit

    def read(self, size: int) -> bytes:
        return self._take(self.file.read(min(size, self.left)))

    def readline(self, size: int) -> bytes:
        return self._take(self.file.readline(min(size, self.left)))

    def close(self) -> None:
        self.file.close()

    def _take(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data


class PingServer(ThreadingHTTPServer):
    """Serves a few connections at a time, each for a short while: the others are closed at once."""

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, *arguments: Any) -> None:
        # Connection -> address, and the moment when it must be over.
        self.open: dict[socket.socket, tuple[str, float]] = {}
        super().__init__(*arguments)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        addresses = [address for address, _ in list(self.open.values())]
        if len(addresses) >= CONNECTIONS or addresses.count(client_address[0]) >= CONNECTIONS_PER_ADDRESS:
            return False
        self.open[request] = (client_address[0], time.monotonic() + CONNECTION_S)
        return True

    def service_actions(self) -> None:
        # The timeout is for each read: who sends a byte now and then would stay for ever.
        for request, (_, until) in list(self.open.items()):
            if time.monotonic() > until:
                with suppress(OSError):
                    # Not TLS's own shutdown: another thread is using it.
                    socket.socket.shutdown(request, socket.SHUT_RDWR)

    def close_request(self, request: Any) -> None:
        self.open.pop(request, None)
        super().close_request(request)

    def handle_error(self, *_: object) -> None:
        # A stranger's broken connection; a traceback for each would fill the journal.
        pass


def ping_server(watch: Watch, settings: dict[str, Any], token: str) -> PingServer:
    """Takes pings: GET, HEAD or POST of /ping/TOKEN, and /ping/TOKEN/fail, as healthchecks.io does."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        server_version, sys_version = "watcher", ""

        def setup(self) -> None:
            super().setup()
            self.rfile = Bounded(self.rfile, REQUEST_BYTES)  # type: ignore[assignment]

        def answer(self) -> None:
            path = self.path.split("?")[0].encode()
            good = hmac.compare_digest(path, f"/ping/{token}".encode())
            bad = hmac.compare_digest(path, f"/ping/{token}/fail".encode())
            if not good and not bad:
                self.say(404, b"not found\n")
                return
            try:
                # Read, so that the client can send all of it before it hears the answer.
                self.rfile.read(max(0, int(self.headers.get("Content-Length") or 0)))
            except ValueError:
                self.say(400, b"Content-Length is no number\n")
                return
            if good:
                watch.pinged()
            else:
                watch.failed()
            self.say(200, b"OK\n")

        def say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            # The path is the secret.
            pass

    server = PingServer(("", settings["ping_port"]), Handler)
    if settings["tls"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings["tls"]["certificate"], settings["tls"]["key"])
        # Not in accept(): a client that says nothing must not keep the others out.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    secrets = json.loads(Path(sys.argv[2]).read_text())
    path = Path(settings["state"])
    watch = Watch(settings, load_state(path, time.time()), lambda message: tell(secrets["channels"], message))
    if settings["ping_grace_s"] is not None:
        server = ping_server(watch, settings, secrets["ping_token"])
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"watching {settings['url']} every {settings['interval_s']} s", flush=True)
    while True:
        began = time.monotonic()
        watch.probed(probe(settings))
        watch.look_at_ping()
        watch.looked(look_here(settings, watch.state.began, time.time()))
        watch.deliver()
        with watch.lock:
            save_state(path, watch.state)
        if secrets.get("alive_url"):
            _alive(secrets["alive_url"])
        time.sleep(max(1.0, settings["interval_s"] - (time.monotonic() - began)))


def _alive(url: str) -> None:
    """Tells a third party that the watcher itself lives."""
    try:
        with urllib.request.urlopen(url, timeout=NOTIFY_TIMEOUT_S) as answer:  # noqa: S310 - the operator's own
            answer.read(1024)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"<4>the watcher's own ping failed: {type(error).__name__}", flush=True)


if __name__ == "__main__":
    main()
