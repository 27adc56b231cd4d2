"""Download files over TLS: resume, retry, limit; send no credentials.

A download may resume anything (RFC 9110, section 14), because the caller knows the hash of the whole file.
"""

from __future__ import annotations

import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from minipc.artifacts.catalogue import safe_url
from minipc.artifacts.errors import UnobtainableError

BACKOFF_S = (1.0, 4.0, 16.0)  # before the second, third and fourth attempt
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds without a byte
_DEADLINE_S = 3600.0  # one file, all attempts together
_MAX_REDIRECTS = 5
_MAX_FILE = 4 << 30  # bytes; the largest image set is well below 1 GB
_MAX_TEXT = 1 << 20  # bytes
_MAX_WAIT_S = 60.0  # for a server that says when to ask again
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}

Result = TypeVar("Result")


class _RetryError(Exception):
    """Another attempt may succeed, `wait_s` seconds later at the earliest."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Downloader:
    """Download files. A host that did not answer is not asked again.

    Args:
        backoff_s: seconds to wait before each further attempt.
        connect_backoff_s: the same for a host that does not answer at all; default: `backoff_s`.
        verify: TLS trust; True means httpx's root certificates, or those of SSL_CERT_FILE.
        sleep: function that waits.
        deadline_s: longest time for one file.
    """

    def __init__(
        self,
        *,
        backoff_s: Sequence[float] = BACKOFF_S,
        connect_backoff_s: Sequence[float] | None = None,
        verify: ssl.SSLContext | bool = True,
        sleep: Callable[[float], None] = time.sleep,
        deadline_s: float = _DEADLINE_S,
    ) -> None:
        self._backoff_s = backoff_s
        self._connect_backoff_s = backoff_s if connect_backoff_s is None else connect_backoff_s
        self._verify = _trust() if verify is True else verify
        self._sleep = sleep
        self._deadline_s = deadline_s
        self._unreachable: dict[str, str] = {}

    def text(self, url: str) -> str:
        """Return a small text file, such as a publisher's checksums. Raises UnobtainableError."""

        def attempt() -> str:
            with self._get(url) as response:
                _check_status(response)
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _MAX_TEXT:
                        raise UnobtainableError(f"{_shown(url)} is larger than {_MAX_TEXT} bytes")
                return content.decode("utf-8", errors="replace")

        return self._retry(url, attempt, lambda: 0)

    def file(self, url: str, partial: Path, label: str = "") -> bool:
        """Complete `partial`; its content so far is kept, whatever it is. The caller compares the hash.

        Args:
            label: what the progress bar shows.

        Returns:
            Whether a part was kept, so that a wrong hash may be the fault of that part.

        Raises:
            UnobtainableError: it cannot be downloaded; what arrived is kept for the next time.
        """
        give_up_at = time.monotonic() + self._deadline_s
        resumed = False

        def attempt() -> None:
            nonlocal resumed
            done = _size(partial)
            with self._get(url, {"Range": f"bytes={done}-"} if done else {}) as response:
                if done and response.status_code == 416:  # nothing is missing
                    resumed = True
                    return
                if response.status_code == 206:
                    if not done or not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                        partial.unlink(missing_ok=True)
                        raise _RetryError("the server sent another part than the missing one")
                    resumed = True
                else:
                    _check_status(response)
                    resumed, done = False, 0
                self._receive(response, partial, done, label, give_up_at)

        self._retry(url, attempt, lambda: _size(partial))
        return resumed

    def _receive(self, response: httpx.Response, partial: Path, done: int, label: str, give_up_at: float) -> None:
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        with partial.open("ab" if done else "wb") as file, _progress_bar(label, done, total) as show:
            # Raw: the hash is of the bytes as published, whatever Content-Encoding says.
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                show(done)
                if done > _MAX_FILE:
                    raise UnobtainableError(f"{_shown(response.url)} is larger than {_MAX_FILE >> 30} GiB")
                if time.monotonic() > give_up_at:
                    raise UnobtainableError(f"{_shown(response.url)} took longer than {self._deadline_s:.0f} s")

    @contextmanager
    def _get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        allow_http = urlsplit(url).scheme == "http"

        def check(request: httpx.Request) -> None:  # called for every redirect too
            request.headers.pop("Cookie", None)
            try:
                safe_url(str(request.url))
            except ValueError as error:
                raise UnobtainableError(f"redirected to {_shown(request.url)}, which is not {error}") from None
            if request.url.scheme != "https" and not allow_http:
                raise UnobtainableError(f"redirected from https to {_shown(request.url)}")

        # Identity: otherwise a server may compress, and ranges would count other bytes.
        sent = {"User-Agent": "minipc", "Accept-Encoding": "identity", **(headers or {})}
        with (
            httpx.Client(
                verify=self._verify,
                timeout=_TIMEOUT,
                follow_redirects=True,
                max_redirects=_MAX_REDIRECTS,
                event_hooks={"request": [check]},
            ) as client,
            client.stream("GET", url, headers=sent) as response,
        ):
            yield response

    def _retry(self, url: str, attempt: Callable[[], Result], progress: Callable[[], int]) -> Result:
        host = urlsplit(url).netloc
        if host in self._unreachable:
            raise UnobtainableError(self._unreachable[host])
        failures = 0
        while True:
            before = progress()
            try:
                return attempt()
            except httpx.TooManyRedirects:
                raise UnobtainableError(f"{_shown(url)}: more than {_MAX_REDIRECTS} redirects") from None
            except (_RetryError, httpx.TransportError) as error:
                unreachable = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                wait_s = error.wait_s if isinstance(error, _RetryError) else 0.0
                reason = f"{urlsplit(url).hostname}: {_reason(error)}"
            except (httpx.InvalidURL, httpx.HTTPError) as error:
                raise UnobtainableError(_reason(error)) from error
            # After new data the count starts again.
            failures = 1 if progress() > before else failures + 1
            waits = self._connect_backoff_s if unreachable else self._backoff_s
            if failures > len(waits):
                if unreachable:
                    self._unreachable[host] = reason
                raise UnobtainableError(reason)
            self._sleep(max(waits[failures - 1], wait_s))


@cache
def _trust() -> ssl.SSLContext:
    """Return httpx's default context. Reading the root certificates takes 30 ms."""
    return httpx.create_ssl_context()


@contextmanager
def _progress_bar(label: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal and nothing elsewhere."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    # Not Console.is_terminal: FORCE_COLOR would put a bar into a log file.
    disable = not sys.stderr.isatty()
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(label, completed=done, total=total)
        yield lambda done: progress.update(task, completed=done)


def _check_status(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    reason = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    if response.status_code in _TEMPORARY:
        asked = response.headers.get("Retry-After", "")  # seconds; a date is not waited for (RFC 9110, 10.2.3)
        wait_s = float(asked) if asked.isdecimal() else 0.0
        if wait_s <= _MAX_WAIT_S:
            raise _RetryError(reason, wait_s)
        reason += f", to be tried again after {wait_s:.0f} s"
    raise UnobtainableError(f"{_shown(response.url)}: {reason}")


def _reason(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error).strip()) or type(error).__name__


def _shown(url: str | httpx.URL) -> str:
    """Return the address without credentials and query: release hosts put signatures into the query."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
