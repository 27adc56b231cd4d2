"""Fetches a file over HTTP: resumed, retried, bounded; never over an unprotected connection, never with credentials.

HTTP ranges, If-Range and validators: RFC 9110, sections 13.1.5 and 14.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from minipc.artifacts.catalogue import safe_url
from minipc.artifacts.errors import UnobtainableError
from minipc.artifacts.meter import Meter

BACKOFF = (1.0, 4.0, 16.0)  # seconds before the second, third and fourth try
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds without a byte
_DEADLINE = 3600.0  # seconds for one file, all tries together
_MAX_REDIRECTS = 5
_MAX_FILE = 4 << 30  # bytes; the largest image set is well below 1 GB
_MAX_TEXT = 1 << 20  # bytes
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<total>\d+|\*)")

Result = TypeVar("Result")


class _PassingError(Exception):
    """Worth another try."""


class _NoConnectionError(_PassingError):
    """The host did not even answer."""


class Downloader:
    """Fetches files; remembers hosts that can't be reached, so that nobody waits for them twice.

    Args:
        backoff: seconds to wait before each further try.
        connect_backoff: the same for a host that doesn't answer at all; `backoff` when not given.
        verify: TLS trust; True means httpx's roots, or those of SSL_CERT_FILE.
        sleep: how to wait.
        deadline: seconds for one file, all tries together.
    """

    def __init__(
        self,
        *,
        backoff: Sequence[float] = BACKOFF,
        connect_backoff: Sequence[float] | None = None,
        verify: ssl.SSLContext | bool = True,
        sleep: Callable[[float], None] = time.sleep,
        deadline: float = _DEADLINE,
    ) -> None:
        self._backoff = backoff
        self._connect_backoff = backoff if connect_backoff is None else connect_backoff
        self._verify = verify
        self._sleep = sleep
        self._deadline = deadline
        self._unreachable: dict[str, str] = {}

    def text(self, url: str) -> str:
        """A small text file, such as a publisher's checksums.

        Raises:
            UnobtainableError: it can't be had.
        """

        def attempt() -> str:
            with self._get(url, {}) as response:
                _check_status(response)
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _MAX_TEXT:
                        raise UnobtainableError(f"{_shown(url)} is larger than {_MAX_TEXT} bytes")
                return content.decode("utf-8", errors="replace")

        return self._retried(url, attempt, lambda: 0)

    def file(self, url: str, partial: Path, meter: Meter) -> bool:
        """Completes `partial`; what is there already is kept if the server still has the same file.

        Returns:
            Whether some of it was there before this call.

        Raises:
            UnobtainableError: it can't be had; what arrived stays for the next time.
        """
        resumable = _resumable(url, partial)
        stop = time.monotonic() + self._deadline
        self._retried(url, lambda: self._continue(url, partial, meter, stop), lambda: _size(partial), stop=stop)
        return resumable

    def discard(self, partial: Path) -> None:
        """Forgets a download that was begun."""
        partial.unlink(missing_ok=True)
        _notes(partial).unlink(missing_ok=True)

    def _continue(self, url: str, partial: Path, meter: Meter, stop: float) -> None:
        headers = {}
        done = _size(partial) if _resumable(url, partial) else 0
        if done:
            headers = {"Range": f"bytes={done}-", "If-Range": _validator(url, partial)}
        with self._get(url, headers) as response:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code == 416 and done and match and match["total"] == str(done):
                return
            if response.status_code in (206, 416):
                if not (response.status_code == 206 and done and match and match["start"] == str(done)):
                    self.discard(partial)
                    raise _PassingError("the server answered with another part than the missing one")
                if _changed(response, headers["If-Range"]):
                    self.discard(partial)
                    raise _PassingError("the file was replaced on the server")
                total = None if match["total"] == "*" else int(match["total"])
            else:
                _check_status(response)
                done = 0
                self.discard(partial)
                length = response.headers.get("Content-Length")
                total = int(length) if length else None
                _remember(url, partial, response)
            self._receive(response, partial, done, total, meter, stop)

    def _receive(
        self, response: httpx.Response, partial: Path, done: int, total: int | None, meter: Meter, stop: float
    ) -> None:
        meter.at(done, total)
        with partial.open("ab") as file:
            # Raw: the hash is of the bytes as published, whatever Content-Encoding says.
            # As it arrives: larger pieces would be lost when the connection is cut.
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                meter.at(done, total)
                if done > _MAX_FILE:
                    raise UnobtainableError(f"{_shown(response.url)} is larger than {_MAX_FILE >> 30} GiB")
                if time.monotonic() > stop:
                    raise UnobtainableError(f"{_shown(response.url)} took longer than {self._deadline:.0f} s")
        if total is not None and done != total:
            raise _PassingError(f"the connection ended after {done} of {total} bytes")

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The response at the end of the redirects; each hop is a new request without cookies."""
        for _ in range(_MAX_REDIRECTS + 1):
            # Identity: otherwise a server may compress, and ranges would count other bytes.
            sent = {"User-Agent": "minipc", "Accept-Encoding": "identity", **headers}
            with (
                httpx.Client(verify=self._verify, timeout=_TIMEOUT, follow_redirects=False) as client,
                client.stream("GET", url, headers=sent) as response,
            ):
                if not response.has_redirect_location:
                    yield response
                    return
                url = _redirected(url, response.headers["Location"])
        raise UnobtainableError(f"more than {_MAX_REDIRECTS} redirects, the last one to {_shown(url)}")

    def _retried(
        self,
        url: str,
        attempt: Callable[[], Result],
        progress: Callable[[], int],
        stop: float = float("inf"),
    ) -> Result:
        host = urlsplit(url).netloc
        if host in self._unreachable:
            raise UnobtainableError(self._unreachable[host])
        failures = 0
        while True:
            before = progress()
            try:
                return _translated(attempt)
            except _PassingError as fault:
                # What arrived since the last fault is a reason to be patient again.
                failures = 1 if progress() > before else failures + 1
                unreachable = isinstance(fault, _NoConnectionError)
                waits = self._connect_backoff if unreachable else self._backoff
                reason = f"{urlsplit(url).hostname}: {fault}"
                if failures > len(waits) or time.monotonic() + waits[failures - 1] > stop:
                    if unreachable:
                        self._unreachable[host] = reason
                    raise UnobtainableError(reason) from fault
                self._sleep(waits[failures - 1])


def _translated(attempt: Callable[[], Result]) -> Result:
    try:
        return attempt()
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _NoConnectionError(_reason(error)) from error
    except httpx.TransportError as error:
        raise _PassingError(_reason(error)) from error
    except (httpx.InvalidURL, httpx.HTTPError) as error:
        raise UnobtainableError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error).strip()) or type(error).__name__


def _check_status(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    reason = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    if response.status_code in _PASSING:
        raise _PassingError(reason)
    raise UnobtainableError(f"{_shown(response.url)}: {reason}")


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    try:
        safe_url(target)
    except ValueError as error:
        raise UnobtainableError(f"redirected to {_shown(target)}, which is not {error}") from None
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise UnobtainableError(f"redirected from https to {_shown(target)}")
    return target


def _shown(url: str | httpx.URL) -> str:
    """The address without its query (redirects of release hosts are signed there) and credentials."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _notes(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _changed(response: httpx.Response, validator: str) -> bool:
    """Whether a server that ignores If-Range sent a part of another file."""
    header = "ETag" if validator.startswith('"') else "Last-Modified"
    return str(response.headers.get(header, validator)) != validator


def _remember(url: str, partial: Path, response: httpx.Response) -> None:
    etag = response.headers.get("ETag", "")
    # A weak validator may name different bytes (RFC 9110, 13.1.5).
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    _notes(partial).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _validator(url: str, partial: Path) -> str:
    try:
        notes = json.loads(_notes(partial).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return ""
    return str(notes.get("validator") or "") if notes.get("url") == url else ""


def _resumable(url: str, partial: Path) -> bool:
    return _size(partial) > 0 and _validator(url, partial) != ""
