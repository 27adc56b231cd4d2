"""Test the lab's DNS zone: name server, provider and their clients."""

from __future__ import annotations

import socket
import struct

import pytest

from minipc.core.environment import PRODUCTION
from rehearsal.doubles.name_server import Address, answer, serve
from rehearsal.lab import inventory, zone
from rehearsal.lab.machine import Machine, ProcessId

RECORDS = [
    Address("service.example.org", "A", "198.51.100.7", 60),
    Address("service.example.org", "AAAA", "2001:db8::7", 60),
    Address("other.example.org", "A", "198.51.100.8", 300),
]


def query(name: str, kind: int = 1, number: int = 7) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def parsed(response: bytes) -> tuple[int, int, list[bytes]]:
    """Return number, response code, and the addresses, each after its TTL."""
    number, flags, questions, answers, *_ = struct.unpack_from("!6H", response)
    assert flags & 0x8000, "a response"
    rest = response[12:]
    if questions:
        rest = rest[rest.index(b"\0") + 5 :]
    found = []
    for _ in range(answers):
        pointer, _, _, ttl, length = struct.unpack_from("!3HIH", rest)
        assert pointer == 0xC00C
        found.append(ttl.to_bytes(4, "big") + rest[12 : 12 + length])
        rest = rest[12 + length :]
    return number, flags & 15, found


@pytest.mark.parametrize(
    ("name", "kind", "code", "content"),
    [
        ("service.example.org", 1, 0, socket.inet_aton("198.51.100.7")),
        ("SERVICE.example.ORG", 1, 0, socket.inet_aton("198.51.100.7")),
        ("service.example.org", 28, 0, socket.inet_pton(socket.AF_INET6, "2001:db8::7")),
        ("other.example.org", 28, 0, None),
        ("service.example.org", 16, 0, None),
        ("nothing.example.org", 1, 3, None),
        ("example.org", 1, 0, None),
        ("service.example.net", 1, 5, None),
        ("ample.org", 1, 5, None),
    ],
)
def test_an_answer_contains_the_matching_record(name, kind, code, content):
    number, found_code, found = parsed(answer(query(name, kind), "example.org", RECORDS))
    assert (number, found_code) == (7, code)
    assert [each[4:] for each in found] == ([content] if content else [])
    assert all(each[:4] == (60).to_bytes(4, "big") for each in found)


@pytest.mark.parametrize(
    "broken", [query("a.b")[:14], query("a.b")[:20], b"\0" * 12, query("a.b").replace(b"\1a", b"\xc0a")]
)
def test_a_malformed_query_is_a_format_error(broken):
    _, code, found = parsed(answer(broken, "example.org", RECORDS))
    assert (code, found) == (1, [])


def test_an_incomplete_header_is_not_answered():
    assert answer(b"\0\7", "example.org", RECORDS) == b""


def test_each_query_reads_the_current_records():
    records = [RECORDS[0]]
    server = serve("127.0.0.1", "example.org", lambda: records, port=0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(server.server_address)
            for content in ("198.51.100.7", "198.51.100.9"):
                records[0] = Address("service.example.org", "A", content, 60)
                client.send(query("service.example.org"))
                assert parsed(client.recv(512))[2][0][4:] == socket.inet_aton(content)
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Describe a zone for `mini` that this process serves."""
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    where = {"api_url": "http://198.51.100.2:1/client/v4", "address_url": "http://198.51.100.2:1/cdn-cgi/trace"}
    made = zone.Zone(serves="mini", zone="minipc.test", nameserver="127.77.0.1", process=ProcessId.own(), **where)
    zone.write(made)
    return made


def test_a_zone_belongs_to_its_machine_and_its_replacement(served):
    assert zone.zone_of("mini") == zone.zone_of("mini-2") == served
    assert zone.zone_of("minimal") is zone.zone_of("offsite-mini") is None


def test_a_zone_without_its_server_is_ignored(served):
    zone.write(zone.Zone(**vars(served) | {"process": ProcessId(served.process.pid, 1)}))
    assert zone.zone_of("mini") is None


def test_a_zone_is_copied_to_another_state_directory(served, tmp_path, monkeypatch):
    zone.hand_over("mini-2", tmp_path / "other")
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "other"))
    assert zone.zone_of("mini-2") == served


def test_the_replaced_settings_of_production_are_listed(served):
    replaced = {each.key: each for each in inventory.overrides(PRODUCTION, served)}
    assert replaced["dns_api_url"].used_value == repr(served.api_url)
    assert "nobody's real records" in replaced["dns_provider"].why


def test_an_off_site_host_watches_its_machine_or_what_replaced_it(monkeypatch):
    def watched(*names):
        machines = [Machine(name, index, disk_gb=1, image="") for index, name in enumerate(names)]
        monkeypatch.setattr(inventory, "load_all", lambda: machines)
        address = inventory._watched_by("offsite-mini")
        return next((machine.name for machine in machines if machine.public_ipv4 == address), None)

    assert watched("offsite-mini", "mini-2", "mini", "minimal") == "mini"
    assert watched("offsite-mini", "minimal", "mini-2") == "mini-2"
    assert watched("offsite-mini", "minimal") is None


def test_a_client_finds_names_by_the_zone(served):
    argv = zone.as_a_client(served, "curl", "https://service.minipc.test")
    assert argv[:4] == ["ip", "netns", "exec", "public"]
    assert argv[-2:] == ["curl", "https://service.minipc.test"]
    assert "nameserver 127.77.0.1" in argv[6]
    assert zone.as_a_client(None, "curl") == ["ip", "netns", "exec", "public", "curl"]
