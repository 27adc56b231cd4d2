"""The external monitor: when it tells, what it tells, and that it tells later what it couldn't tell now."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from select import select
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from minipc.paths import ROOT

TOKEN = "a" * 32
SETTINGS = {
    "failures": 2,
    "repeat_s": 3600,
    "ping_grace_s": 600,
    "name": "www.example.org",
    "tls": None,
    "ping_port": 0,
}


@pytest.fixture(scope="module")
def watcher():
    spec = importlib.util.spec_from_file_location("watcher", ROOT / "templates/watcher/watcher.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["watcher"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["watcher"]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Told:
    """Takes messages, unless it is broken."""

    def __init__(self):
        self.texts = []
        self.works = True

    def __call__(self, message):
        if self.works:
            self.texts.append(message["text"])
        return self.works


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(watcher, told, clock):
    return watcher.Watch(SETTINGS, watcher.State(pinged_at=clock()), told, clock)


def step(watch, clock, *reasons):
    """A probe each minute, and what is told then."""
    for reason in reasons:
        watch.probed(reason)
        watch.look_at_ping()
        watch.deliver()
        clock.now += 60


def test_one_failure_is_silent_two_are_told_once_and_the_end_too(watch, clock, told):
    step(watch, clock, "", "timed out", "", "timed out", "answers 503", "answers 503")
    assert told.texts == ["DOWN www.example.org: the service does not answer: answers 503"]
    step(watch, clock, "", "")
    assert told.texts[1:] == ["UP www.example.org: the service is back after 3 min 0 s"]


def test_what_lasts_is_told_again(watch, clock, told):
    step(watch, clock, *["timed out"] * 64)
    assert len([text for text in told.texts if "the service" in text]) == 2


def test_a_ping_that_stops_is_shouted_and_resolves(watch, clock, told):
    watch.pinged()
    step(watch, clock, *[""] * 11)
    assert told.texts == []
    step(watch, clock, "")
    assert told.texts == [
        "DOWN www.example.org: the machine's own monitoring is not well: no ping for 660 s, at most 600 s are allowed"
    ]
    watch.pinged()
    watch.deliver()
    assert told.texts[1].startswith("UP www.example.org: the machine's own monitoring is back")


def test_a_machine_that_never_pings_is_shouted_about(watch, clock, told):
    step(watch, clock, *[""] * 12)
    assert len(told.texts) == 1


def test_a_machine_may_say_that_it_is_not_well(watch, clock, told):
    watch.failed()
    step(watch, clock, "", "")
    assert [text.split(": ")[-1] for text in told.texts] == ["it says so itself"]
    watch.pinged()
    watch.deliver()
    assert len(told.texts) == 2


def test_no_ping_is_expected_unless_asked_for(watcher, told, clock):
    watch = watcher.Watch(SETTINGS | {"ping_grace_s": None}, watcher.State(), told, clock)
    step(watch, clock, *[""] * 30)
    assert told.texts == []


def test_what_could_not_be_told_is_told_later(watcher, watch, clock, told, tmp_path):
    told.works = False
    step(watch, clock, "timed out", "timed out", "")
    assert told.texts == []
    watcher.save_state(tmp_path / "state.json", watch.state)
    told.works = True
    again = watcher.Watch(SETTINGS, watcher.load_state(tmp_path / "state.json", clock()), told, clock)
    again.deliver()
    assert [text.split()[0] for text in told.texts] == ["DOWN", "UP"], "also after a restart, in order"


def test_a_restart_tells_nothing_twice(watcher, watch, clock, told, tmp_path):
    step(watch, clock, "timed out", "timed out")
    watcher.save_state(tmp_path / "state.json", watch.state)
    again = watcher.Watch(SETTINGS, watcher.load_state(tmp_path / "state.json", clock()), told, clock)
    step(again, clock, "timed out")
    assert len(told.texts) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"service": {}}', "null"])
def test_a_broken_state_is_a_new_beginning(watcher, tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    assert watcher.load_state(tmp_path / "state.json", 7.0) == watcher.State(began=7.0, pinged_at=7.0)


def test_the_state_of_an_earlier_watcher_is_kept(watcher, tmp_path):
    old = {"service": {"failures": 3, "since": 1, "told": 2, "reason": "x"}, "ping": {}, "pinged_at": 5, "waiting": []}
    (tmp_path / "state.json").write_text(json.dumps(old))
    state = watcher.load_state(tmp_path / "state.json", 7.0)
    assert (state.service.failures, state.pinged_at, state.began) == (3, 5, 7.0)
    assert state.copies == watcher.Trouble()


def looked(watch, clock, *rounds):
    for found in rounds:
        watch.looked({"units": "", "disk": "", "copies": ""} | found)
        watch.deliver()
        clock.now += 60


def test_what_is_wrong_on_its_own_machine_is_told_once_and_so_is_its_end(watch, clock, told):
    looked(watch, clock, {"units": "a.service"}, {})
    assert told.texts == [], "once is silent"
    looked(watch, clock, *[{"copies": "the repository is not what it was"}] * 5)
    assert told.texts == [
        "DOWN www.example.org: the off-site copy of the backups is not well: the repository is not what it was"
    ]
    looked(watch, clock, {})
    assert "the off-site copy of the backups is back" in told.texts[1]


def test_another_trouble_is_told_at_once_and_a_number_that_moves_is_not(watch, clock, told):
    looked(watch, clock, *[{"copies": "no room"}] * 3, {"copies": "the repository is not what it was"})
    assert [text.rpartition(": ")[2] for text in told.texts] == ["no room", "the repository is not what it was"]
    looked(
        watch, clock, *[{"copies": "the repository is not what it was", "disk": f"/ has {n} % left"} for n in (5, 4, 3)]
    )
    assert [text for text in told.texts if "disk" in text] == [
        "DOWN www.example.org: the off-site disk fills up: / has 4 % left"
    ]


def test_copies_are_well_old_or_bad(watcher, tmp_path):
    status = tmp_path / "status.json"
    ask = lambda began, now: watcher.copies_not_well(str(status), 46800, began, now)  # noqa: E731
    assert ask(1000, 1000 + 46800) == "", "a new machine has as much time as any other"
    assert ask(1000, 1001 + 46800) == "none went well for more than 13 h"
    status.write_text('{"at": 90000, "trouble": ""}')
    assert ask(1000, 90000 + 46800) == ""
    assert ask(1000, 90001 + 46800) == "none went well for more than 13 h"
    status.write_text('{"at": 90000, "trouble": "no room"}')
    assert ask(1000, 90001) == "no room"
    for broken in ("", "{}", "[]"):
        status.write_text(broken)
        assert "can't be read" in ask(1000, 1001), broken


def test_a_disk_is_short_below_its_share(watcher, monkeypatch):
    def statvfs(path):
        if path == "/none":
            raise FileNotFoundError
        return SimpleNamespace(f_bavail={"/": 9, "/srv": 10}[path], f_blocks=100)

    monkeypatch.setattr(watcher.os, "statvfs", statvfs)
    assert watcher.short_of_disk(["/", "/srv", "/none"], 10) == "/ has 9 % left"


def test_failed_units_are_named(watcher, monkeypatch, tmp_path):
    program = tmp_path / "systemctl"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for script, expected in (
        ("printf 'b.service loaded failed failed B\\na.service loaded failed failed A\\n'", "a.service, b.service"),
        ("true", ""),
        ("exit 1", "systemd can't be asked: CalledProcessError"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert watcher.failed_units() == expected


@pytest.fixture
def server(watcher, watch):
    server = watcher.ping_server(watch, SETTINGS, TOKEN)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(url, data=None):
    try:
        with urlopen(url, data=data, timeout=5) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_only_who_knows_the_token_pings(server, watch, clock):
    clock.now += 500
    for path in ("/", "/ping", "/ping/", f"/ping/{TOKEN[:-1]}", f"/ping/{TOKEN}x", "/ping/%61" + TOKEN[1:]):
        assert ask(server + path) == 404
        assert ask(server + path, b"{}") == 404
    assert watch.state.pinged_at == 1000
    assert ask(f"{server}/ping/{TOKEN}", b'{"alerts": []}') == 200
    assert watch.state.pinged_at == 1500
    assert not watch.state.unwell
    assert ask(f"{server}/ping/{TOKEN}/fail") == 200
    assert watch.state.unwell


def connect(url, text=b"", address="127.0.0.1"):
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 8, (address, 0))
    connection.sendall(text)
    return connection


def test_a_stranger_is_answered_before_the_body(server):
    """Whatever length they claim: nothing of it is waited for."""
    for length in (b"-1", b"1000000", b"x"):
        with connect(server, b"POST /ping/x HTTP/1.0\r\nContent-Length: " + length + b"\r\n\r\n") as stranger:
            stranger.settimeout(2)
            assert b" 404 " in stranger.recv(100), length


@pytest.mark.parametrize(("length", "status"), [("-1", 200), ("x", 400), ("1e9", 400)])
def test_a_length_that_is_none_reads_nothing(server, watch, clock, length, status):
    clock.now += 500
    with connect(server, f"POST /ping/{TOKEN} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n".encode()) as client:
        client.settimeout(2)
        assert f" {status} ".encode() in client.recv(100)
    assert watch.state.pinged_at == (1500 if status == 200 else 1000)


def test_a_request_is_read_up_to_a_limit(server, watcher, watch, clock):
    """Headers, too: without end they would fill the memory that the watcher has."""
    line = b"X: " + b"x" * 1000 + b"\r\n"
    lines = 2 * watcher.REQUEST_BYTES // len(line)
    with connect(server, b"GET / HTTP/1.0\r\n" + line * lines) as stranger:
        stranger.settimeout(2)
        with suppress(ConnectionResetError):
            assert b" 404 " in stranger.recv(100), "answered, though the headers have no end"
    assert ask(f"{server}/ping/{TOKEN}", b"x" * 1_000) == 200


def test_who_opens_many_connections_is_turned_away_and_others_are_not(server, watcher):
    held = [connect(server) for _ in range(watcher.CONNECTIONS_PER_ADDRESS)]
    time.sleep(0.2)
    try:
        with connect(server) as another:
            assert another.recv(10) == b"", "closed at once"
        with connect(server, f"GET /ping/{TOKEN} HTTP/1.0\r\n\r\n".encode(), "127.0.0.2") as machine:
            assert b" 200 " in machine.recv(100)
    finally:
        for connection in held:
            connection.close()


def test_all_addresses_together_have_a_limit(server, watcher):
    each, count = watcher.CONNECTIONS_PER_ADDRESS, watcher.CONNECTIONS
    held = [connect(server, address=f"127.0.1.{n // each + 1}") for n in range(count)]
    time.sleep(0.3)
    try:
        with connect(server, address="127.0.2.1") as another:
            assert another.recv(10) == b""
    finally:
        for connection in held:
            connection.close()


def test_who_sends_a_byte_now_and_then_does_not_stay(monkeypatch, watcher, server):
    monkeypatch.setattr(watcher, "CONNECTION_S", 1)
    began = time.monotonic()
    with connect(server, b"GET /") as slow, suppress(ConnectionError):
        while time.monotonic() < began + 6 and not select([slow], [], [], 0.1)[0]:
            slow.sendall(b"x")
    assert time.monotonic() - began < 4


class Receiver(BaseHTTPRequestHandler):
    status = 200
    got: list[tuple[dict[str, str], bytes]] = []  # noqa: RUF012 - emptied by the fixture

    def do_POST(self):
        Receiver.got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(Receiver.status)
        self.end_headers()

    def do_GET(self):
        self.send_response(Receiver.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    Receiver.status, Receiver.got = 200, []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-path"
    server.shutdown()
    server.server_close()


MESSAGE = {
    "status": "firing",
    "name": "www.example.org",
    "text": "DOWN www.example.org: x",
    "at": "now",
    "from": "here",
}


def test_a_webhook_gets_json_and_ntfy_gets_text(watcher, receiver, capsys):
    assert watcher.tell([{"kind": "webhook", "url": receiver}, {"kind": "ntfy", "url": receiver}], MESSAGE)
    (_, hook), (headers, text) = Receiver.got
    assert json.loads(hook)["text"] == MESSAGE["text"]
    assert (text.decode(), headers["Priority"]) == (MESSAGE["text"], "urgent")
    assert capsys.readouterr().out.startswith("<2>DOWN"), "critical in the journal"


def test_a_channel_that_fails_is_named_but_not_its_address(watcher, receiver, capsys):
    Receiver.status = 500
    channels = [{"kind": "webhook", "url": receiver}, {"kind": "ntfy", "url": "http://127.0.0.1:9/secret"}]
    assert not watcher.tell([*channels, {"kind": "journal"}], MESSAGE)
    said = capsys.readouterr().out
    assert "channel webhook failed: HTTPError" in said
    assert "secret" not in said
    assert watcher.tell([{"kind": "journal"}], MESSAGE), "the journal alone is enough where nothing else is configured"


def test_a_probe_sees_status_and_refusal(watcher, receiver):
    settings = {"url": receiver, "address": None, "timeout_s": 2, "verify_tls": True}
    assert watcher.probe(settings) == ""
    Receiver.status = 503
    assert watcher.probe(settings) == "answers 503"
    assert "refused" in watcher.probe(settings | {"url": "http://127.0.0.1:9/"})
    assert "ValueError" not in watcher.probe(settings | {"url": "http://name.invalid/", "address": "127.0.0.1"})
    assert watcher.probe(settings | {"url": "http://name.invalid/"}) != "", "DNS counts"
