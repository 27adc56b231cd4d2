"""DNS providers by lexicon, over real HTTP, against servers on loopback that answer as the published APIs do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from minipc.core.errors import MinipcError, SecretError
from minipc.dns.lexicon_provider import LexiconProvider
from minipc.dns.records import DnsError, Record
from rehearsal.doubles.cloudflare import FakeCloudflare
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
def cloudflare(server: FakeCloudflare, waits: list[float], said: list[str]) -> LexiconProvider:
    return provider(server, sleep=waits.append, say=said.append)


def provider(server: FakeCloudflare, zone: str = ZONE, token: str = TOKEN, **more: Any) -> LexiconProvider:
    return LexiconProvider("cloudflare", zone, token, {}, server.api_url, **more)


def error_of(cloudflare: LexiconProvider) -> MinipcError:
    with pytest.raises(MinipcError) as caught:
        cloudflare.records()
    assert_silent(caught.value, TOKEN)
    assert caught.value.next_step
    return caught.value


def test_records_are_read_with_everything_that_matters(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.add_record(ZONE, "SERVICE.example.org", "A", "198.51.100.7", ttl=120)
    server.add_record(ZONE, "www.example.org", "CNAME", "service.example.org", ttl=1, proxied=True)
    server.add_record("example.net", "example.net", "A", "198.51.100.9")
    first, second = cloudflare.records()
    assert first == Record(NAME, "A", "198.51.100.7", 120, id=first.id)
    assert (second.type, second.proxied, second.cached_s) == ("CNAME", True, 300)


def test_all_pages_are_read(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    for number in range(250):
        server.add_record(ZONE, f"host-{number}.example.org", "A", f"198.51.100.{number}")
    assert [record.name for record in cloudflare.records()] == [f"host-{number}.example.org" for number in range(250)]
    assert [each.query.get("page") for each in server.seen if "dns_records" in each.path] == [None, ["2"], ["3"]]


def test_an_empty_zone_has_no_records(cloudflare: LexiconProvider) -> None:
    assert list(cloudflare.records()) == []


def test_a_created_record_is_there(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    cloudflare.create(Record(NAME, "A", "198.51.100.7", 60).held_by("0" * 36))
    assert server.the(NAME, "A")["content"] == "198.51.100.7"
    assert server.the(f"_minipc.{NAME}", "TXT")["content"] == f"minipc {'0' * 36}"
    assert server.the(NAME, "A")["proxied"] is False


def test_a_change_keeps_what_is_the_users(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7", ttl=1, proxied=True, tags=["a"], comment="mine")
    (present,) = cloudflare.records()
    cloudflare.update(present, Record(NAME, "A", "198.51.100.8", present.ttl_s))
    assert server.the(NAME, "A")["content"] == "198.51.100.8"
    assert server.the(NAME, "A")["tags"] == ["a"]
    assert server.the(NAME, "A")["proxied"] is True
    assert server.the(NAME, "A")["comment"] == "mine"


def test_the_zones_in_reach_are_told(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    assert cloudflare.zones() == [ZONE]
    server.add_zone("zone.example", TOKEN)
    assert cloudflare.zones() == [ZONE, "zone.example"]


# --- who holds a record ----------------------------------------------------------------------------------------------

US, THEM = "2" * 36, "1" * 36


def test_the_holder_is_a_text_record(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7")
    server.add_record(ZONE, f"_minipc.{NAME}", "TXT", f'"minipc {THEM}"')
    present = cloudflare.records()[0]
    assert present.holder == THEM
    cloudflare.update(present, present.held_by(US))
    assert cloudflare.records()[0].holder == US
    assert server.the(f"_minipc.{NAME}", "TXT")["content"] == f"minipc {US}"


def test_the_comment_of_an_earlier_version_counts_without_one(
    server: FakeCloudflare, cloudflare: LexiconProvider
) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7", comment=f"minipc {US}")
    present = cloudflare.records()[0]
    assert present.holder == US
    cloudflare.update(present, replace(present, content="198.51.100.8"))
    assert server.the(NAME, "A")["comment"] == ""
    assert cloudflare.records()[0].holder == US


def test_a_text_record_of_somebody_else_stays(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.add_record(ZONE, f"_minipc.{NAME}", "TXT", "keep out")
    with pytest.raises(DnsError, match="keep out"):
        cloudflare.create(Record(NAME, "A", "198.51.100.7", 60).held_by(US))
    assert server.changes() == []


def test_a_holder_that_changed_meanwhile_stays(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    """A cutover between the look and the change of the old machine's timer."""
    server.add_record(ZONE, NAME, "A", "198.51.100.7")
    server.add_record(ZONE, f"_minipc.{NAME}", "TXT", f"minipc {US}")
    present = cloudflare.records()[0]
    server.the(f"_minipc.{NAME}", "TXT")["content"] = f"minipc {THEM}"
    with pytest.raises(DnsError, match=f"the holder of {NAME} A changed meanwhile"):
        cloudflare.update(present, replace(present, content="198.51.100.8"))
    assert server.changes() == []


def test_the_token_travels_in_the_header_only(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    cloudflare.records()
    for request in server.seen:
        assert request.authorization == f"Bearer {TOKEN}"
        assert TOKEN not in request.path + json.dumps(request.query) + json.dumps(request.body)
    assert TOKEN not in repr(cloudflare)


# --- what can go wrong ---------------------------------------------------------------------------------------------


def test_an_unknown_token(server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]) -> None:
    server.tokens.clear()
    error = error_of(cloudflare)
    assert isinstance(error, SecretError)
    assert "cloudflare answered 403" in error.what
    assert "Invalid access token" in error.what
    assert "minipc secrets set" in error.next_step
    assert waits == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_by_status_alone(server: FakeCloudflare, cloudflare: LexiconProvider, status: int) -> None:
    server.canned = (status, {}, b'{"success":false,"errors":[]}')
    assert isinstance(error_of(cloudflare), SecretError)


def test_a_malformed_token(server: FakeCloudflare) -> None:
    assert "Invalid request headers" in error_of(provider(server, token="short")).what


@pytest.mark.parametrize("token", ["ab cd", "tök€n", "line\nbreak", "nul\0", "{broken", '{"auth_token": 7}'])
def test_a_token_that_no_header_can_carry(server: FakeCloudflare, token: str) -> None:
    with pytest.raises(SecretError, match="characters that no credential has") as caught:
        provider(server, token=token)
    assert_silent(caught.value, token)


def test_a_token_that_may_only_read(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.read_only.add(ZONE)
    with pytest.raises(SecretError, match=f"could not create {NAME} A") as caught:
        cloudflare.create(Record(NAME, "A", "198.51.100.7", 60))
    assert f"edit {ZONE}" in caught.value.next_step
    assert_silent(caught.value, TOKEN)


def test_a_server_that_repeats_the_token(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    body = {"success": False, "errors": [{"code": 9109, "message": f"bad token {TOKEN}\n\x1b[31m" + "x" * 900}]}
    server.canned = (403, {}, json.dumps(body).encode())
    error = error_of(cloudflare)
    assert "bad token …" in error.what
    assert "\x1b" not in error.what
    assert len(error.what) < 400


def test_a_zone_that_is_not_there(server: FakeCloudflare) -> None:
    error = error_of(provider(server, "exmaple.org"))
    assert "does not have the zone" in error.what
    assert "dns_zone" in error.next_step


def test_a_zone_of_somebody_else(server: FakeCloudflare) -> None:
    assert "does not have the zone" in error_of(provider(server, "example.net")).what


def test_the_zone_is_the_one_that_was_asked_for(server: FakeCloudflare) -> None:
    server.add_zone("aaa.example", TOKEN)
    server.ignores_filters = True
    provider(server).create(Record(NAME, "A", "198.51.100.7", 60))
    assert server.zones["aaa.example"].records == []
    assert len(server.zones[ZONE].records) == 1


def test_a_cname_in_the_way_of_a_new_record(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.add_record(ZONE, NAME, "CNAME", "elsewhere.example.net")
    with pytest.raises(DnsError, match=f"could not create {NAME} A: .*81053") as caught:
        cloudflare.create(Record(NAME, "A", "198.51.100.7", 60))
    assert "minipc dns show" in caught.value.next_step


def test_a_record_that_vanished_meanwhile(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7")
    (present,) = cloudflare.records()
    server.zones[ZONE].records.clear()
    with pytest.raises(DnsError, match=f"could not change {NAME} A: .*Record does not exist"):
        cloudflare.update(present, Record(NAME, "A", "198.51.100.8", 300))


def test_a_value_that_the_api_refuses(server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]) -> None:
    with pytest.raises(DnsError, match=r"answered 400: .*TTL must be between 60"):
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
        (404, {}, b"nothing here"),
    ],
)
def test_something_else_answers(
    server: FakeCloudflare, cloudflare: LexiconProvider, answer: tuple[int, dict[str, str], bytes]
) -> None:
    server.canned = answer
    error = error_of(cloudflare)
    assert isinstance(error, DnsError)
    assert "did not answer as expected" in error.what or "answered 404: nothing here" in error.what


def test_a_record_without_what_every_record_has(server: FakeCloudflare, cloudflare: LexiconProvider) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7", id=None)
    assert "cloudflare did not answer as its API does" in error_of(cloudflare).what


# --- trying again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [BROKEN, (429, {}, b""), (500, {}, b""), (503, {}, b"")])
def test_it_waits_one_four_and_sixteen_seconds(
    server: FakeCloudflare,
    cloudflare: LexiconProvider,
    waits: list[float],
    said: list[str],
    answer: tuple[int, dict[str, str], bytes],
) -> None:
    server.next_answers = [answer, answer, answer]
    assert list(cloudflare.records()) == []
    assert waits == [1, 4, 16]
    assert said[1] == said[0].replace("in 1 s", "in 4 s")
    assert str(answer[0]) in said[0]


def test_the_fourth_failure_is_the_last(
    server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]
) -> None:
    server.canned = BROKEN
    error = error_of(cloudflare)
    assert error.what == f"could not list the records of {ZONE}: cloudflare answered 502, 4 times"
    assert waits == [1, 4, 16]
    assert len(server.seen) == 4


def test_retry_after_is_honoured(server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]) -> None:
    server.next_answers = [LIMITED, LIMITED, LIMITED]
    cloudflare.records()
    assert waits == [7, 7, 16]


def test_retry_after_as_a_date(server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.next_answers = [(429, {"Retry-After": moment}, b"")]
    cloudflare.records()
    assert waits[0] == pytest.approx(100, abs=3)


@pytest.mark.parametrize("text", ["soon", "-5", "", "Fri, 31 Feb 2020 00:00:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_says_nothing(
    server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float], text: str
) -> None:
    server.next_answers = [(429, {"Retry-After": text}, b"")]
    cloudflare.records()
    assert waits == [1]


def test_a_wait_that_is_too_long_is_told_at_once(
    server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]
) -> None:
    server.canned = (429, {"Retry-After": "900"}, b"")
    assert "limits the rate of requests (429) and asks to wait 900 s" in error_of(cloudflare).what
    assert waits == []


def test_a_cut_connection_is_tried_again(
    server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]
) -> None:
    server.hang_up = 2
    assert list(cloudflare.records()) == []
    assert waits == [1, 4]


def test_nobody_there(waits: list[float]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/client/v4"
        error = error_of(LexiconProvider("cloudflare", ZONE, TOKEN, {}, url, sleep=waits.append))
    assert "cloudflare can't be reached (Connection refused), 4 times" in error.what
    assert waits == [1, 4, 16]


def test_no_answer_in_time(server: FakeCloudflare, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipc.dns.lexicon_provider.ATTEMPT_S", 0.1)
    server.delay_s = 0.4
    assert "no answer within" in error_of(provider(server, sleep=waits.append)).what


def test_a_creation_whose_answer_was_lost_is_not_made_twice(
    server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]
) -> None:
    server.cut_after = 1
    cloudflare.create(Record(NAME, "A", "198.51.100.7", 60))
    assert server.the(NAME, "A")["content"] == "198.51.100.7"
    assert waits == [1]


def test_a_change_whose_answer_was_lost_is_made_again(
    server: FakeCloudflare, cloudflare: LexiconProvider, waits: list[float]
) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7")
    (present,) = cloudflare.records()
    server.cut_after = 1
    cloudflare.update(present, Record(NAME, "A", "198.51.100.8", 300))
    assert server.the(NAME, "A")["content"] == "198.51.100.8"
    assert waits == [1]
