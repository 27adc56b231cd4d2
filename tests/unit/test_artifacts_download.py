from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc.artifacts.download import Downloader
from minipc.artifacts.errors import UnobtainableError
from rehearsal.doubles.tls_authority import Authority
from tests.unit.artifacts_server import File, Server, serve

CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        running["/file"] = File(CONTENT)
        yield running


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def downloader(waits: list[float]) -> Downloader:
    return Downloader(sleep=waits.append)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "partial"


def test_over_tls_only_with_a_trusted_certificate(authority: Authority, partial: Path) -> None:
    with serve(authority.server) as server:
        server["/file"] = File(CONTENT)
        assert Downloader(verify=authority.client).file(f"{server.url}/file", partial) is False
        assert partial.read_bytes() == CONTENT
        with pytest.raises(UnobtainableError, match="certificate verify failed"):
            Downloader(sleep=lambda _: None).file(f"{server.url}/file", partial.with_name("other"))


def test_an_interrupted_download_is_resumed(
    server: Server, downloader: Downloader, partial: Path, waits: list[float]
) -> None:
    server.files["/file"].faults += [("cut", 1000), ("cut", 500)]
    assert downloader.file(f"{server.url}/file", partial) is True
    assert partial.read_bytes() == CONTENT
    assert [each.headers.get("Range") for each in server.requests] == [None, "bytes=1000-", "bytes=1500-"]
    assert waits == [1.0, 1.0], "each attempt brought data, so the count starts again"


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server, partial: Path) -> None:
    server.files["/file"].faults.append(("cut", 1000))
    with pytest.raises(UnobtainableError):
        Downloader(backoff_s=()).file(f"{server.url}/file", partial)
    assert partial.read_bytes() == CONTENT[:1000]
    assert Downloader().file(f"{server.url}/file", partial) is True
    assert partial.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("file", "begin", "resumed"),
    [
        (File(CONTENT, ranges=False), CONTENT[:1000], False),
        (File(CONTENT), CONTENT, True),
        (File(CONTENT, length=False), CONTENT[:1000], True),
    ],
    ids=["server ignores ranges", "partial file is complete", "no length"],
)
def test_a_partial_file_becomes_the_whole_one(
    server: Server, downloader: Downloader, partial: Path, file: File, begin: bytes, resumed: bool
) -> None:
    partial.write_bytes(begin)
    server["/file"] = file
    assert downloader.file(f"{server.url}/file", partial) is resumed
    assert partial.read_bytes() == CONTENT


def test_another_part_than_the_missing_one_is_not_appended(server: Server, partial: Path) -> None:
    partial.write_bytes(CONTENT[:1000])
    server["/file"] = File(CONTENT, start=0)
    assert Downloader(sleep=lambda _: None).file(f"{server.url}/file", partial) is False
    assert partial.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_errors_are_retried_with_growing_waits(
    server: Server, downloader: Downloader, partial: Path, waits: list[float], status: int
) -> None:
    server.files["/file"].faults += [status] * 3
    downloader.file(f"{server.url}/file", partial)
    assert partial.read_bytes() == CONTENT
    assert waits == [1.0, 4.0, 16.0]


def test_a_server_that_says_when_to_ask_again_is_asked_then(
    server: Server, downloader: Downloader, partial: Path, waits: list[float]
) -> None:
    server["/file"] = File(CONTENT, faults=[429, 429], retry_after="3")
    downloader.file(f"{server.url}/file", partial)
    assert waits == [3.0, 4.0], "never earlier than otherwise"
    server["/file"] = File(CONTENT, faults=[429], retry_after="3600")
    with pytest.raises(UnobtainableError, match="HTTP 429 Too Many Requests, to be tried again after 3600 s"):
        downloader.text(f"{server.url}/file")
    server["/file"] = File(CONTENT, faults=[503], retry_after="Tue, 01 Dec 2026 08:00:00 GMT")
    downloader.text(f"{server.url}/file")
    assert waits == [3.0, 4.0, 1.0]


@pytest.mark.parametrize(
    ("status", "requests", "reason"),
    [
        (503, 4, r"127\.0\.0\.1: HTTP 503 Service Unavailable"),
        (401, 1, "/file: HTTP 401"),
        (404, 1, "/file: HTTP 404"),
        (410, 1, "/file: HTTP 410"),
    ],
)
def test_it_gives_up(
    server: Server, downloader: Downloader, partial: Path, status: int, requests: int, reason: str
) -> None:
    server.files["/file"].faults += [status] * 9
    with pytest.raises(UnobtainableError, match=reason):
        downloader.file(f"{server.url}/file", partial)
    assert len(server.requests) == requests
    assert not partial.exists()


def test_a_host_that_does_not_answer_is_asked_once(partial: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    waits: list[float] = []
    downloader = Downloader(sleep=waits.append, connect_backoff_s=(2.0,))
    for name in ("one", "two"):
        with pytest.raises(UnobtainableError, match=r"127\.0\.0\.1: Connection refused"):
            downloader.file(f"{url}/{name}", partial)
    assert waits == [2.0]
    with pytest.raises(UnobtainableError, match=r"nowhere\.invalid: "):
        Downloader(backoff_s=()).file("https://nowhere.invalid/file", partial)


def test_limits(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/huge"] = File(b"x" * (1 << 20) + b"x")
    with pytest.raises(UnobtainableError, match="larger than"):
        downloader.text(f"{server.url}/huge")
    assert downloader.text(f"{server.url}/file") == CONTENT.decode("utf-8", errors="replace")
    with pytest.raises(UnobtainableError, match="took longer than 0 s"):
        Downloader(deadline_s=0.0).file(f"{server.url}/file", partial)


def test_redirects_are_followed_without_cookies_and_credentials(
    server: Server, downloader: Downloader, partial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server["/away"] = File(location="/further?signature=x")
    server["/further"] = File(location=f"{server.url}/file")
    downloader.file(f"{server.url}/away", partial)
    assert partial.read_bytes() == CONTENT
    names = {name.lower() for request in server.requests for name in request.headers}
    assert not names & {"authorization", "cookie", "proxy-authorization"}


def test_a_redirect_from_https_to_http_is_refused(authority: Authority, server: Server, partial: Path) -> None:
    with serve(authority.server) as secure:
        secure["/file"] = File(location=f"{server.url}/file")
        with pytest.raises(UnobtainableError, match="redirected from https to http://127"):
            Downloader(verify=authority.client).file(f"{secure.url}/file", partial)
    assert server.requests == []
    assert not partial.exists()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://example.org/file?token=hidden", r"http://example\.org/file, which is not an https address"),
        ("ftp://example.org/file", "not an https address"),
        ("https://user:hidden@example.org/file", r"https://example\.org/file, which is not an address without"),
        ("file:///etc/passwd", "not an https address"),
        ("/file", "more than 5 redirects"),
    ],
)
def test_unsafe_redirects_are_refused(
    server: Server, downloader: Downloader, partial: Path, location: str, reason: str
) -> None:
    server["/file"] = File(location=location)
    with pytest.raises(UnobtainableError, match=reason) as caught:
        downloader.file(f"{server.url}/file", partial)
    assert "hidden" not in str(caught.value)
