"""What runs on the machine: its own records follow its address, others are left alone."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc.dns import changes, follow
from minipc.dns.address import parse_address, public_address
from minipc.dns.cloudflare import Cloudflare
from minipc.dns.records import DnsError
from minipc.dns.shipped import SHIPPED
from minipc.lab.cloudflare import FakeCloudflare
from minipc.paths import ROOT

TOKEN = "t0ken-for_example-org"
ZONE = "example.org"
NAME = "service.example.org"
US = "22222222-2222-4222-8222-222222222222"
THEM = "11111111-1111-4111-8111-111111111111"
STANDARD = sys.stdlib_module_names


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
                "zone": ZONE,
                "api_url": server.api_url,
                "address_url": server.address_url,
                "records": [[NAME, "A"]],
            }
        )
    )
    token.write_text(TOKEN + "\n")
    return [str(config), str(token)]


def test_a_new_address_is_followed(server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture) -> None:
    server.add_record(ZONE, NAME, "A", "1.2.3.4", ttl=120, comment=f"minipc {US}")
    assert follow.main(files) == 0
    assert server.changes() == [("PATCH", {"content": "8.8.4.4"})]
    assert server.the(NAME, "A")["ttl"] == 120
    assert f"{NAME} A: 1.2.3.4 -> 8.8.4.4" in capsys.readouterr().out
    assert follow.main(files) == 0
    assert len(server.changes()) == 1


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        (f"minipc {THEM}", f"held by another machine ({THEM})"),
        ("mine, hands off", "held by no machine"),
        (None, "held by no"),
    ],
)
def test_what_others_hold_is_left_alone(
    server: FakeCloudflare, files: list[str], comment: str | None, said: str, capsys: pytest.CaptureFixture
) -> None:
    """The old machine comes back: it must not take the name from its successor, and it is no failure."""
    server.add_record(ZONE, NAME, "A", "1.2.3.4", comment=comment)
    assert follow.main(files) == 0
    assert server.changes() == []
    assert said in capsys.readouterr().out


def test_a_missing_record_is_not_made(server: FakeCloudflare, files: list[str]) -> None:
    assert follow.main(files) == 0
    assert server.changes() == []


def test_an_address_that_is_not_public_is_not_published(
    server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture
) -> None:
    server.add_record(ZONE, NAME, "A", "1.2.3.4", comment=f"minipc {US}")
    server.address = "192.168.1.10"
    assert follow.main(files) == 1
    assert server.changes() == []
    assert "192.168.1.10, which is no public IPv4 address" in capsys.readouterr().err


def test_a_change_that_did_not_stick_fails(
    server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture
) -> None:
    server.add_record(ZONE, NAME, "A", "1.2.3.4", comment=f"minipc {US}")
    server.ignores_changes = True
    assert follow.main(files) == 1
    assert f"{NAME} A is 1.2.3.4, not 8.8.4.4" in capsys.readouterr().err


def test_a_refused_token_fails_and_is_not_shown(
    server: FakeCloudflare, files: list[str], capsys: pytest.CaptureFixture
) -> None:
    server.tokens.clear()
    assert follow.main(files) == 1
    captured = capsys.readouterr()
    assert "refuses the token" in captured.err
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
    assert "can't be read" in capsys.readouterr().err


# --- the public address --------------------------------------------------------------------------------------------


def test_each_family_is_asked_over_itself() -> None:
    with FakeCloudflare(host="127.0.0.1") as server:
        with pytest.raises(DnsError, match=r"127\.0\.0\.1, which is no public IPv4"):
            public_address("A", server.address_url)
        with pytest.raises(DnsError, match="can't be reached"):
            public_address("AAAA", server.address_url, sleep=lambda seconds: None)


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
        with pytest.raises(DnsError, match="which is no public IPv4 address"):
            parse_address("198.51.100.7", "A", url)
    with pytest.raises(DnsError):
        parse_address("10.0.0.1", "A", "http://198.51.100.2:8053/cdn-cgi/trace")


def test_an_address_service_that_refuses(server: FakeCloudflare) -> None:
    with pytest.raises(DnsError, match="answered 400"):
        public_address("A", f"{server.api_url}/zones")  # without a token


# --- what goes to the machine --------------------------------------------------------------------------------------


def test_what_runs_there_needs_nothing_that_is_not_there() -> None:
    """Standard library, httpx, and modules that are placed with it."""
    modules = {path: ast.parse((ROOT / path).read_text()) for path in SHIPPED}
    shipped = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in SHIPPED}
    for path, tree in modules.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert name in shipped if top == "minipc" else top == "httpx" or top in STANDARD, (path, name)


def test_it_finds_what_it_holds_among_many(server: FakeCloudflare) -> None:
    server.add_record(ZONE, NAME, "A", "1.2.3.4", comment=f"minipc {US}")
    server.add_record(ZONE, ZONE, "A", "1.2.3.4", comment=f"minipc {THEM}")
    config = follow.FollowConfig(US, ZONE, server.api_url, server.address_url, ((NAME, "A"), (ZONE, "A")))
    changed = follow.follow(config, Cloudflare(ZONE, TOKEN, server.api_url), lambda kind: "8.8.4.4")
    assert [str(change.wanted) for change in changed] == [f"{NAME} A"]
    assert server.the(ZONE, "A")["content"] == "1.2.3.4"
