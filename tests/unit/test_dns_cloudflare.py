"""Cloudflare's API over real HTTP, against a server on loopback that answers as the published one does."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from minipc.dns.cloudflare import Cloudflare
from minipc.dns.records import DnsError, Record
from minipc.errors import MinipcError, SecretError
from minipc.lab.cloudflare import FakeCloudflare
from tests.unit.secrets_leaks import assert_silent

TOKEN = "t0ken-for_example-org"
ZONE = "example.org"
NAME = "service.example.org"
LIMITED = (
    429,
    {"Retry-After": "7"},
    b'{"success":false,"errors":[{"code":10429,"message":"slow down"}],"result":null}',
)
BROKEN = (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>")


@pytest.fixture
def server() -> Iterator[FakeCloudflare]:
    with FakeCloudflare() as fake:
        fake.add_zone("example.net", "another-token")
        fake.add_zone(ZONE, TOKEN)
        yield fake


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cloudflare(server: FakeCloudflare, waits: list[float], said: list[str]) -> Cloudflare:
    return Cloudflare(ZONE, TOKEN, server.api_url, sleep=waits.append, say=said.append)


def error_of(cloudflare: Cloudflare) -> MinipcError:
    with pytest.raises(MinipcError) as caught:
        cloudflare.records()
    assert_silent(caught.value, TOKEN)
    assert caught.value.next_step
    return caught.value


def test_records_are_read_with_everything_that_matters(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    server.add_record(ZONE, "SERVICE.example.org", "A", "198.51.100.7", ttl=120, comment="mine")
    server.add_record(ZONE, "www.example.org", "CNAME", "service.example.org", ttl=1, proxied=True)
    server.add_record("example.net", "example.net", "A", "198.51.100.9")
    first, second = cloudflare.records()
    assert first == Record(NAME, "A", "198.51.100.7", 120, "mine", proxied=False, id=first.id)
    assert (second.type, second.proxied, second.cached_s) == ("CNAME", True, 300)


def test_all_pages_are_read(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    for number in range(250):
        server.add_record(ZONE, f"host-{number}.example.org", "A", f"198.51.100.{number}")
    assert [record.name for record in cloudflare.records()] == [f"host-{number}.example.org" for number in range(250)]
    assert [request.query["page"] for request in server.seen if "dns_records" in request.path] == [["1"], ["2"], ["3"]]


def test_an_empty_zone_has_no_records(cloudflare: Cloudflare) -> None:
    assert list(cloudflare.records()) == []


def test_a_created_record_is_there(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    cloudflare.create(Record(NAME, "A", "198.51.100.7", 60).held_by("0" * 36))
    assert server.the(NAME, "A")["content"] == "198.51.100.7"
    assert server.the(NAME, "A")["comment"] == f"minipc {'0' * 36}"
    assert server.the(NAME, "A")["proxied"] is False


def test_only_what_differs_is_sent(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7", comment="keep", tags=["a"])
    (present,) = cloudflare.records()
    cloudflare.update(present, Record(NAME, "A", "198.51.100.8", present.ttl_s, present.comment))
    assert server.changes() == [("PATCH", {"content": "198.51.100.8"})]
    assert server.the(NAME, "A")["tags"] == ["a"]


def test_the_zones_in_reach_are_told(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    assert cloudflare.zones() == [ZONE]
    for number in range(60):
        server.add_zone(f"zone-{number:02}.example", TOKEN)
    assert len(cloudflare.zones()) == 61


def test_the_token_travels_in_the_header_only(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    cloudflare.records()
    for request in server.seen:
        assert request.authorization == f"Bearer {TOKEN}"
        assert TOKEN not in request.path + json.dumps(request.query) + json.dumps(request.body)
    assert TOKEN not in repr(cloudflare)


# --- what can go wrong ---------------------------------------------------------------------------------------------


def test_an_unknown_token(server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]) -> None:
    server.tokens.clear()
    error = error_of(cloudflare)
    assert isinstance(error, SecretError)
    assert "HTTP 403; 9109: Invalid access token" in error.what
    assert "minipc secrets set dns.cloudflare_token" in error.next_step
    assert waits == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_by_status_alone(server: FakeCloudflare, cloudflare: Cloudflare, status: int) -> None:
    server.canned = (status, {}, b'{"success":false,"errors":[]}')
    assert isinstance(error_of(cloudflare), SecretError)


def test_a_malformed_token(server: FakeCloudflare) -> None:
    error = error_of(Cloudflare(ZONE, "short", server.api_url))
    assert isinstance(error, SecretError)
    assert "HTTP 400; 6003" in error.what


@pytest.mark.parametrize("token", ["ab cd", "tök€n", "line\nbreak", "nul\0"])
def test_a_token_that_no_header_can_carry(server: FakeCloudflare, token: str) -> None:
    with pytest.raises(SecretError, match="characters that no token has") as caught:
        Cloudflare(ZONE, token, server.api_url)
    assert_silent(caught.value, token)


def test_a_token_that_may_only_read(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    server.read_only.add(ZONE)
    with pytest.raises(SecretError, match=f"could not create {NAME} A") as caught:
        cloudflare.create(Record(NAME, "A", "198.51.100.7", 60))
    assert "DNS:Edit" in caught.value.next_step
    assert_silent(caught.value, TOKEN)


def test_a_server_that_repeats_the_token(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    body = {"success": False, "errors": [{"code": 9109, "message": f"bad token {TOKEN}\n\x1b[31m" + "x" * 900}]}
    server.canned = (403, {}, json.dumps(body).encode())
    error = error_of(cloudflare)
    assert "bad token …" in error.what
    assert "\x1b" not in error.what
    assert len(error.what) < 400


def test_a_zone_that_is_not_there(server: FakeCloudflare) -> None:
    error = error_of(Cloudflare("exmaple.org", TOKEN, server.api_url))
    assert "reaches no zone exmaple.org" in error.what
    assert "dns_zone" in error.next_step


def test_a_zone_of_somebody_else(server: FakeCloudflare) -> None:
    assert "reaches no zone example.net" in error_of(Cloudflare("example.net", TOKEN, server.api_url)).what


def test_the_zone_is_the_one_that_was_asked_for(server: FakeCloudflare) -> None:
    server.add_zone("aaa.example", TOKEN)
    server.ignores_filters = True
    Cloudflare(ZONE, TOKEN, server.api_url).create(Record(NAME, "A", "198.51.100.7", 60))
    assert server.zones["aaa.example"].records == []
    assert len(server.zones[ZONE].records) == 1


def test_a_cname_in_the_way_of_a_new_record(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    server.add_record(ZONE, NAME, "CNAME", "elsewhere.example.net")
    with pytest.raises(DnsError, match=f"could not create {NAME} A: another record has that name.*81053") as caught:
        cloudflare.create(Record(NAME, "A", "198.51.100.7", 60))
    assert "minipc dns show" in caught.value.next_step


def test_a_record_that_vanished_meanwhile(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7")
    (present,) = cloudflare.records()
    server.zones[ZONE].records.clear()
    with pytest.raises(DnsError, match=f"could not change {NAME} A: it is no longer there"):
        cloudflare.update(present, Record(NAME, "A", "198.51.100.8", 300))


def test_a_value_that_the_api_refuses(server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]) -> None:
    with pytest.raises(DnsError, match="HTTP 400; 9021: TTL must be between 60"):
        cloudflare.create(Record(NAME, "A", "198.51.100.7", 30))
    assert waits == []


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"<html>welcome</html>"),
        (200, {}, b"[]"),
        (200, {}, b'{"result": []}'),
        (200, {}, b'{"success": true, "result": null}'),
        (200, {}, b'{"success": true, "result": ["x"]}'),
        (200, {}, b'{"success": true, "result": [{"id": "../x", "name": "example.org"}]}'),
        (302, {"Location": "http://127.0.0.1:9/"}, b""),
        (404, {}, b"nothing here"),
    ],
)
def test_something_else_answers(
    server: FakeCloudflare, cloudflare: Cloudflare, answer: tuple[int, dict[str, str], bytes]
) -> None:
    server.canned = answer
    assert "did not answer as Cloudflare's API does" in error_of(cloudflare).what


def test_a_record_without_what_every_record_has(server: FakeCloudflare, cloudflare: Cloudflare) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7", id=None)
    assert "did not answer as Cloudflare's API does" in error_of(cloudflare).what


# --- trying again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [BROKEN, (429, {}, b""), (500, {}, b""), (503, {}, b"")])
def test_it_waits_one_four_and_sixteen_seconds(
    server: FakeCloudflare,
    cloudflare: Cloudflare,
    waits: list[float],
    said: list[str],
    answer: tuple[int, dict[str, str], bytes],
) -> None:
    server.next_answers = [answer, answer, answer]
    assert list(cloudflare.records()) == []
    assert waits == [1, 4, 16]
    assert said[1] == said[0].replace("in 1 s", "in 4 s")
    assert str(answer[0]) in said[0]


def test_the_fourth_failure_is_the_last(server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]) -> None:
    server.canned = BROKEN
    error = error_of(cloudflare)
    assert error.what == f"could not find the zone {ZONE}: 127.0.0.1 answered 502, 4 times"
    assert waits == [1, 4, 16]
    assert len(server.seen) == 4


def test_retry_after_is_honoured(server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]) -> None:
    server.next_answers = [LIMITED, LIMITED, LIMITED]
    cloudflare.records()
    assert waits == [7, 7, 16]


def test_retry_after_as_a_date(server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.next_answers = [(429, {"Retry-After": moment}, b"")]
    cloudflare.records()
    assert waits[0] == pytest.approx(100, abs=3)


@pytest.mark.parametrize("text", ["soon", "-5", "", "Fri, 31 Feb 2020 00:00:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_says_nothing(
    server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float], text: str
) -> None:
    server.next_answers = [(429, {"Retry-After": text}, b"")]
    cloudflare.records()
    assert waits == [1]


def test_a_wait_that_is_too_long_is_told_at_once(
    server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]
) -> None:
    server.canned = (429, {"Retry-After": "900"}, b"")
    assert "limits the rate of requests (429) and asks to wait 900 s" in error_of(cloudflare).what
    assert waits == []


def test_a_cut_connection_is_tried_again(server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]) -> None:
    server.hang_up = 2
    assert list(cloudflare.records()) == []
    assert waits == [1, 4]


def test_nobody_there(waits: list[float]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/client/v4"
        error = error_of(Cloudflare(ZONE, TOKEN, url, sleep=waits.append))
    assert "127.0.0.1 can't be reached (Connection refused), 4 times" in error.what
    assert waits == [1, 4, 16]


def test_no_answer_in_time(server: FakeCloudflare, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipc.dns.cloudflare.TIMEOUT_S", 0.1)
    server.delay_s = 0.4
    assert "did not answer within" in error_of(Cloudflare(ZONE, TOKEN, server.api_url, sleep=waits.append)).what


def test_a_creation_whose_answer_was_lost_is_not_made_twice(
    server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]
) -> None:
    server.cut_after = 1
    cloudflare.create(Record(NAME, "A", "198.51.100.7", 60))
    assert server.the(NAME, "A")["content"] == "198.51.100.7"
    assert waits == [1]


def test_a_change_whose_answer_was_lost_is_made_again(
    server: FakeCloudflare, cloudflare: Cloudflare, waits: list[float]
) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7")
    (present,) = cloudflare.records()
    server.cut_after = 1
    cloudflare.update(present, Record(NAME, "A", "198.51.100.8", 300))
    assert server.the(NAME, "A")["content"] == "198.51.100.8"
    assert waits == [1]
