from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc.artifacts.download import Downloader
from minipc.artifacts.errors import UnobtainableError
from tests.unit.artifacts_server import File, Server, Trust, make_trust, serve

CONTENT = bytes(range(256)) * 40


class Watch:
    """A meter that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def at(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return make_trust(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
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


def test_fetches_a_file_and_reports_how_far_it_is(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/file"] = File(CONTENT)
    watch = Watch()
    assert downloader.file(f"{server.url}/file", partial, watch) is False
    assert partial.read_bytes() == CONTENT
    assert watch.seen[0] == (0, len(CONTENT))
    assert watch.seen[-1] == (len(CONTENT), len(CONTENT))


def test_over_tls_only_with_a_trusted_certificate(trust: Trust, partial: Path) -> None:
    with serve(trust.server) as server:
        server["/file"] = File(CONTENT)
        Downloader(verify=trust.client).file(f"{server.url}/file", partial, Watch())
        assert partial.read_bytes() == CONTENT
        with pytest.raises(UnobtainableError, match="certificate verify failed"):
            Downloader(sleep=lambda _: None).file(f"{server.url}/file", partial.with_name("other"), Watch())


def test_a_cut_connection_is_resumed_where_it_ended(
    server: Server, downloader: Downloader, partial: Path, waits: list[float]
) -> None:
    server["/file"] = File(CONTENT, faults=[("cut", 1000), ("cut", 500)])
    downloader.file(f"{server.url}/file", partial, Watch())
    assert partial.read_bytes() == CONTENT
    asked = [(each.headers.get("Range"), each.headers.get("If-Range")) for each in server.requests]
    assert asked == [(None, None), ("bytes=1000-", '"one"'), ("bytes=1500-", '"one"')]
    # Each try brought something, so patience began anew.
    assert waits == [1.0, 1.0]


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server, partial: Path) -> None:
    server["/file"] = File(CONTENT, faults=[("cut", 1000)])
    with pytest.raises(UnobtainableError):
        Downloader(backoff=()).file(f"{server.url}/file", partial, Watch())
    assert partial.read_bytes() == CONTENT[:1000]
    assert Downloader().file(f"{server.url}/file", partial, Watch()) is True
    assert partial.read_bytes() == CONTENT
    assert server.requests[-1].headers["Range"] == "bytes=1000-"


def test_last_modified_serves_where_the_etag_is_weak(server: Server, downloader: Downloader, partial: Path) -> None:
    date = "Sat, 21 Nov 2026 09:00:00 GMT"
    server["/file"] = File(CONTENT, etag='W/"weak"', last_modified=date, faults=[("cut", 1000)])
    downloader.file(f"{server.url}/file", partial, Watch())
    assert server.requests[-1].headers["If-Range"] == date
    assert partial.read_bytes() == CONTENT


def test_without_a_validator_it_starts_over(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/file"] = File(CONTENT, etag="", faults=[("cut", 1000)])
    downloader.file(f"{server.url}/file", partial, Watch())
    assert "Range" not in server.requests[-1].headers
    assert partial.read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_is_read_from_the_start(
    server: Server, downloader: Downloader, partial: Path
) -> None:
    server["/file"] = File(CONTENT, ranges=False, faults=[("cut", 1000)])
    downloader.file(f"{server.url}/file", partial, Watch())
    assert server.requests[-1].headers["Range"] == "bytes=1000-"
    assert partial.read_bytes() == CONTENT


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range honoured", "If-Range ignored"])
def test_a_file_replaced_in_between_is_not_mixed(server: Server, partial: Path, if_range: bool) -> None:
    url = f"{server.url}/file"
    server["/file"] = File(CONTENT, faults=[("cut", 1000)])
    with pytest.raises(UnobtainableError):
        Downloader(backoff=()).file(url, partial, Watch())
    server["/file"] = File(b"new" * 1000, etag='"two"', if_range=if_range)
    Downloader(sleep=lambda _: None).file(url, partial, Watch())
    assert partial.read_bytes() == b"new" * 1000


def test_a_part_from_another_address_is_not_continued(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/old"] = File(b"old" * 1000, faults=[("cut", 1000)])
    with pytest.raises(UnobtainableError):
        Downloader(backoff=()).file(f"{server.url}/old", partial, Watch())
    server["/new"] = File(CONTENT)
    assert downloader.file(f"{server.url}/new", partial, Watch()) is False
    assert partial.read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_taken(server: Server, downloader: Downloader, partial: Path) -> None:
    url = f"{server.url}/file"
    server["/file"] = File(CONTENT)
    downloader.file(url, partial, Watch())
    assert downloader.file(url, partial, Watch()) is True
    assert partial.read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server: Server, downloader: Downloader, partial: Path) -> None:
    url = f"{server.url}/file"
    server["/file"] = File(CONTENT)
    downloader.file(url, partial, Watch())
    partial.write_bytes(CONTENT + b"more")
    downloader.file(url, partial, Watch())
    assert partial.read_bytes() == CONTENT


def test_damaged_notes_mean_a_new_start(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/file"] = File(CONTENT)
    partial.write_bytes(b"old")
    partial.with_name("partial.json").write_text("{")
    downloader.file(f"{server.url}/file", partial, Watch())
    assert partial.read_bytes() == CONTENT
    assert json.loads(partial.with_name("partial.json").read_text())["validator"] == '"one"'


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_retried_with_growing_waits(
    server: Server, downloader: Downloader, partial: Path, waits: list[float], status: int
) -> None:
    server["/file"] = File(CONTENT, faults=[status, status, status])
    downloader.file(f"{server.url}/file", partial, Watch())
    assert partial.read_bytes() == CONTENT
    assert waits == [1.0, 4.0, 16.0]


def test_after_four_tries_it_gives_up(
    server: Server, downloader: Downloader, partial: Path, waits: list[float]
) -> None:
    server["/file"] = File(CONTENT, faults=[503] * 9)
    with pytest.raises(UnobtainableError, match=r"127\.0\.0\.1: HTTP 503 Service Unavailable"):
        downloader.file(f"{server.url}/file", partial, Watch())
    assert len(server.requests) == 4
    assert not partial.exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_will_not_change_is_not_retried(
    server: Server, downloader: Downloader, partial: Path, waits: list[float], status: int
) -> None:
    server["/file"] = File(CONTENT, faults=[status])
    with pytest.raises(UnobtainableError, match=f"/file: HTTP {status}"):
        downloader.file(f"{server.url}/file", partial, Watch())
    assert (len(server.requests), waits) == (1, [])


def test_a_body_cut_without_a_length_is_left_to_the_hash(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/file"] = File(CONTENT, length=False, faults=[("cut", 1000)])
    downloader.file(f"{server.url}/file", partial, Watch())
    assert partial.read_bytes() == CONTENT[:1000]


def test_a_host_that_does_not_answer_is_asked_once_per_run(partial: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    waits: list[float] = []
    downloader = Downloader(sleep=waits.append, connect_backoff=(2.0,))
    for name in ("one", "two"):
        with pytest.raises(UnobtainableError, match=r"127\.0\.0\.1: Connection refused"):
            downloader.file(f"{url}/{name}", partial, Watch())
    assert waits == [2.0]


def test_an_unknown_host_is_unobtainable(partial: Path) -> None:
    with pytest.raises(UnobtainableError, match=r"nowhere\.invalid: "):
        Downloader(backoff=()).file("https://nowhere.invalid/file", partial, Watch())


def test_a_slow_download_ends_at_its_deadline(server: Server, partial: Path) -> None:
    server["/file"] = File(CONTENT, delay=0.05)
    with pytest.raises(UnobtainableError, match="took longer than 0 s"):
        Downloader(deadline=0.0).file(f"{server.url}/file", partial, Watch())


def test_redirects_are_followed_to_other_files(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/file"] = File(CONTENT)
    server["/away"] = File(location="/further?signature=x")
    server["/further"] = File(location=f"{server.url}/file")
    downloader.file(f"{server.url}/away", partial, Watch())
    assert partial.read_bytes() == CONTENT


def test_a_redirect_from_https_to_http_is_refused(trust: Trust, server: Server, partial: Path) -> None:
    server["/file"] = File(CONTENT)
    with serve(trust.server) as secure:
        secure["/file"] = File(location=f"{server.url}/file")
        with pytest.raises(UnobtainableError, match="redirected from https to http://127"):
            Downloader(verify=trust.client).file(f"{secure.url}/file", partial, Watch())
    assert server.requests == []
    assert not partial.exists()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://example.org/file?token=hidden", r"http://example\.org/file, which is not an https address"),
        ("ftp://example.org/file", "not an https address"),
        ("https://user:hidden@example.org/file", r"https://example\.org/file, which is not an address without"),
        ("file:///etc/passwd", "not an https address"),
    ],
)
def test_a_redirect_to_an_unsafe_address_is_refused(
    server: Server, downloader: Downloader, partial: Path, location: str, reason: str
) -> None:
    server["/file"] = File(location=location)
    with pytest.raises(UnobtainableError, match=reason) as caught:
        downloader.file(f"{server.url}/file", partial, Watch())
    assert "hidden" not in str(caught.value)


def test_redirects_in_a_circle_end(server: Server, downloader: Downloader, partial: Path) -> None:
    server["/file"] = File(location="/file")
    with pytest.raises(UnobtainableError, match="more than 5 redirects"):
        downloader.file(f"{server.url}/file", partial, Watch())
    assert len(server.requests) == 6


def test_no_credentials_are_sent_anywhere(
    server: Server, downloader: Downloader, partial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server["/away"] = File(location="/file")
    server["/file"] = File(CONTENT)
    downloader.file(f"{server.url}/away", partial, Watch())
    names = {name.lower() for request in server.requests for name in request.headers}
    assert not names & {"authorization", "cookie", "proxy-authorization"}


def test_a_text_file_is_bounded(server: Server, downloader: Downloader) -> None:
    server["/sums"] = File(b"x" * 10)
    assert downloader.text(f"{server.url}/sums") == "x" * 10
    server["/huge"] = File(b"x" * (1 << 20) + b"x")
    with pytest.raises(UnobtainableError, match="larger than"):
        downloader.text(f"{server.url}/huge")
