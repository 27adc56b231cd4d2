"""The lab's internet, and that downloads reach it through the variables that any proxy needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc.artifacts.download import Downloader
from minipc.artifacts.errors import UnobtainableError
from rehearsal.doubles.internet import Answer, Internet
from rehearsal.publishers import change_pins

URL, STORED = "https://files.example/v1/program", "https://storage.example/v1/program"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    with Internet(tmp_path / "tls", ["files.example", "storage.example"]) as running:
        running.redirects[URL] = f"{STORED}?signature=secret"
        running.files[STORED] = tmp_path / "program"
        (tmp_path / "program").write_bytes(CONTENT)
        monkeypatch.setenv("HTTPS_PROXY", running.environment()["HTTPS_PROXY"])
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        yield running


@pytest.fixture
def downloader(internet: Internet) -> Downloader:
    return Downloader(verify=internet.authority.client, sleep=lambda _: None)


def test_a_file_is_downloaded_from_the_host_in_its_address(
    internet: Internet, downloader: Downloader, tmp_path: Path
) -> None:
    internet.faults[STORED] = [Answer(content=CONTENT, cut_after=1000), Answer(503)]
    assert downloader.file(URL, tmp_path / "partial") is True
    assert (tmp_path / "partial").read_bytes() == CONTENT
    ranges = [each.headers.get("Range") for each in internet.seen if each.url.startswith(STORED)]
    assert ranges == [None, "bytes=1000-", "bytes=1000-"]
    assert {each.url for each in internet.seen if each.method == "CONNECT"} == {
        "https://files.example",
        "https://storage.example",
    }


def test_a_file_of_a_host_is_not_that_of_another(internet: Internet, downloader: Downloader) -> None:
    with pytest.raises(UnobtainableError, match=r"https://files\.example/v2/program: HTTP 404 Not Found"):
        downloader.text("https://files.example/v2/program")
    internet.faults["storage.example"] = [Answer(503)] * 4
    with pytest.raises(UnobtainableError, match="HTTP 503 Service Unavailable"):
        downloader.text(URL)
    assert internet.faults == {"storage.example": []}


def test_a_host_that_the_lab_does_not_play_is_refused(internet: Internet, downloader: Downloader) -> None:
    with pytest.raises(UnobtainableError, match="The lab's internet does not have this host"):
        downloader.text("https://other.example/")


def test_a_certificate_of_the_lab_is_not_trusted_by_itself(internet: Internet) -> None:
    with pytest.raises(UnobtainableError, match="certificate verify failed"):
        Downloader(sleep=lambda _: None).text(URL)


def test_only_the_versions_of_the_named_pins_change(tmp_path: Path) -> None:
    before = '[artifacts.a]\nversion = "1"\nx = "1"\n\n[artifacts.a.files.amd64]\n\n[artifacts.ab]\nversion = "1"\n'
    (tmp_path / "artifacts.toml").write_text(before)
    change_pins(tmp_path, {"ab": "2"})
    assert (tmp_path / "artifacts.toml").read_text() == before[:-3] + '2"\n'
    assert "[[artifact]]" not in (tmp_path / "artifacts.lock").read_text()
