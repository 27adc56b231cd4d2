"""What runs on the machine: its own records follow its address, others are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from minipc.dns import changes, follow
from minipc.dns.address import RETRIES, parse_address, public_address
from minipc.dns.lexicon_provider import LexiconProvider
from minipc.dns.records import DnsError
from minipc.dns.shipped import shipped
from rehearsal.doubles.cloudflare import FakeCloudflare

TOKEN = "t0ken-for_example-org"
ZONE = "example.org"
NAME = "service.example.org"
US = "22222222-2222-4222-8222-222222222222"
THEM = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCloudflare]:
    monkeypatch.setattr(changes.confirm, "__defaults__", (lambda seconds: None,))
    with FakeCloudflare() as fake:
        fake.add_zone(ZONE, TOKEN)
        fake.address = "8.8.4.4"
        yield fake


@pytest.fixture
def files(server: FakeCloudflare, tmp_path: Path) -> list[str]:
    """Configuration and token as deploys/dns.py writes them."""
    config, token = tmp_path / "dns.json", tmp_path / "token"
    config.write_text(
        json.dumps(
            {
                "identity": US,
                "provider": "cloudflare",
                "options": {},
                "zone": ZONE,
                "api_url": server.api_url,
                "address_url": server.address_url,
                "records": [[NAME, "A"]],
            }
        )
    )
    token.write_text(TOKEN + "\n")
    return [str(config), str(token)]


def add(server: FakeCloudflare, name: str, holder: str, **more: object) -> None:
    server.add_record(ZONE, name, "A", "1.2.3.4", **more)
    server.add_record(ZONE, f"_minipc.{name}", "TXT", f"minipc {holder}")


def test_a_new_address_is_followed(server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture) -> None:
    add(server, NAME, US, ttl=120)
    assert follow.main(files) == 0
    assert server.changes() == [("PATCH", {"content": "8.8.4.4", "ttl": 120})]
    assert f"{NAME} A: 1.2.3.4 -> 8.8.4.4" in capsys.readouterr().out
    assert follow.main(files) == 0
    assert len(server.changes()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"minipc {THEM}", f"held by another machine ({THEM})"),
        ("mine, hands off", "not held by a machine"),
        (None, "not held by"),
    ],
)
def test_what_others_hold_is_left_alone(
    server: FakeCloudflare, files: list[str], text: str | None, said: str, capsys: pytest.CaptureFixture
) -> None:
    """The old machine comes back: it must not take the name from its successor, and it is no failure."""
    server.add_record(ZONE, NAME, "A", "1.2.3.4")
    if text:
        server.add_record(ZONE, f"_minipc.{NAME}", "TXT", text)
    assert follow.main(files) == 0
    assert server.changes() == []
    assert said in capsys.readouterr().out


def test_a_missing_record_is_not_made(server: FakeCloudflare, files: list[str]) -> None:
    assert follow.main(files) == 0
    assert server.changes() == []


def test_an_address_that_is_not_public_is_not_published(
    server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture
) -> None:
    add(server, NAME, US)
    server.address = "192.168.1.10"
    assert follow.main(files) == 1
    assert server.changes() == []
    assert "192.168.1.10, which is not a public IPv4 address" in capsys.readouterr().err


def test_a_change_that_did_not_stick_fails(
    server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture
) -> None:
    add(server, NAME, US)
    server.ignores_changes = True
    assert follow.main(files) == 1
    assert f"{NAME} A is 1.2.3.4, not 8.8.4.4" in capsys.readouterr().err


def test_a_refused_token_fails_and_is_not_shown(
    server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture
) -> None:
    server.tokens.clear()
    assert follow.main(files) == 1
    captured = capsys.readouterr()
    assert "cloudflare answered 403" in captured.err
    assert TOKEN not in captured.err + captured.out


def test_the_address_can_be_asked_for(server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture) -> None:
    assert follow.main([files[0], "--address", "A"]) == 0
    assert capsys.readouterr().out == "8.8.4.4\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"records": []}', '{"records": [["a", "A", 1]]}', None])
def test_a_damaged_configuration_is_told(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "dns.json"
    if content is not None:
        path.write_text(content)
    assert follow.main([str(path), "token"]) == 1
    assert "minipc apply dns" in capsys.readouterr().err


def test_a_missing_token_file_is_told(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert follow.main([files[0], str(tmp_path / "nothing")]) == 1
    assert "cannot be read" in capsys.readouterr().err


# --- the public address --------------------------------------------------------------------------------------------


def test_each_family_is_asked_over_itself() -> None:
    with FakeCloudflare(host="127.0.0.1") as server:
        with pytest.raises(DnsError, match=r"127\.0\.0\.1, which is not a public IPv4"):
            public_address("A", server.address_url)
        with pytest.raises(DnsError, match="can't be reached"):
            public_address("AAAA", server.address_url, retries=RETRIES.new(backoff_factor=0))


@pytest.mark.parametrize(
    ("text", "kind", "address"),
    [
        ("8.8.4.4\n", "A", "8.8.4.4"),
        ("fl=123\nh=example\nip=8.8.4.4\nts=1\n", "A", "8.8.4.4"),
        ("ip=2A00:1450:0:0::4\n", "AAAA", "2a00:1450::4"),
    ],
)
def test_an_address_in_an_answer(text: str, kind: str, address: str) -> None:
    assert parse_address(text, kind, "url") == address


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<html>captive portal</html>", "A"),
        ("", "A"),
        ("8.8.4.4", "AAAA"),
        ("2a00:1450::4", "A"),
        ("100.64.0.9", "A"),
        ("10.0.0.1", "A"),
        ("127.0.0.1", "A"),
        ("fe80::1", "AAAA"),
        ("fd00::1", "AAAA"),
    ],
)
def test_no_public_address_in_an_answer(text: str, kind: str) -> None:
    with pytest.raises(DnsError):
        parse_address(text, kind, "url")


def test_the_labs_addresses_are_public_in_the_lab_only() -> None:
    assert parse_address("198.51.100.7", "A", "http://198.51.100.2:8053/cdn-cgi/trace") == "198.51.100.7"
    for url in ("https://cloudflare.com/cdn-cgi/trace", "http://127.0.0.1/"):
        with pytest.raises(DnsError, match="which is not a public IPv4 address"):
            parse_address("198.51.100.7", "A", url)
    with pytest.raises(DnsError):
        parse_address("10.0.0.1", "A", "http://198.51.100.2:8053/cdn-cgi/trace")


def test_an_address_service_that_refuses(server: FakeCloudflare) -> None:
    with pytest.raises(DnsError, match="answered 400"):
        public_address("A", f"{server.api_url}/zones")  # without a token


# --- what goes to the machine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cloudflare", "digitalocean"])
def test_what_runs_there_needs_nothing_that_is_not_there(provider: str, tmp_path: Path) -> None:
    """Run the placed files with the packages of Debian 13's python3-requests and python3-yaml only."""
    for path, content in shipped(provider).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    for package in ("requests", "urllib3", "yaml", "idna", "certifi", "charset_normalizer"):
        (tmp_path / package).symlink_to(Path(str(find_spec(package).origin)).parent)
    code = f"import minipc.dns.follow, lexicon._private.providers.{provider}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_it_finds_what_it_holds_among_many(server: FakeCloudflare) -> None:
    add(server, NAME, US)
    add(server, ZONE, THEM)
    records = ((NAME, "A"), (ZONE, "A"))
    config = follow.FollowConfig(US, "cloudflare", {}, ZONE, server.api_url, server.address_url, records)
    changed = follow.follow(
        config, LexiconProvider("cloudflare", ZONE, TOKEN, {}, server.api_url), lambda kind: "8.8.4.4"
    )
    assert [str(change.wanted) for change in changed] == [f"{NAME} A"]
    assert server.the(ZONE, "A")["content"] == "1.2.3.4"
