"""One HTTP request, tried again when trying again can help: after 1 s, 4 s and 16 s.

What httpx raises refers to the request with its headers, the token among them, so nothing here is raised while
handling one of its errors: it would be in the chain.
"""

from __future__ import annotations

import email.utils
import functools
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from minipc.dns.records import DnsError

DELAYS_S = (1.0, 4.0, 16.0)
# Cloudflare blocks for five minutes who asks too often; https://developers.cloudflare.com/fundamentals/api/reference/limits
LONGEST_WAIT_S = 300.0
TIMEOUT_S = 10.0

Sleep = Callable[[float], None]
Say = Callable[[str], None]


@functools.cache
def tls_context() -> ssl.SSLContext:
    """One for all clients: reading the CA certificates takes longer than a request."""
    return httpx.create_ssl_context()


def silent(text: str) -> None:
    """A `Say` for callers that have nobody to tell."""


def exchange(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    what: str,
    sleep: Sleep = time.sleep,
    say: Say = silent,
    **request: Any,
) -> httpx.Response:
    """The answer, whatever it is, unless it says "try again" four times.

    Args:
        what: what the request is for, for messages: "list the records of example.org".
        say: told before each wait.
        request: `params` and `json`, as for httpx.

    Raises:
        DnsError: no connection or no answer, too many requests (429), or an error of the server (5xx), each time; or
            the server asks for a longer wait than LONGEST_WAIT_S.
    """
    host = httpx.URL(str(client.base_url)).join(url).host
    for delay in (*DELAYS_S, None):
        answer, problem = _attempt(client, method, url, request)
        if answer is not None and not _again(answer):
            return answer
        asked = _retry_after(answer) if answer is not None else 0.0
        if asked > LONGEST_WAIT_S:
            raise DnsError(f"could not {what}: {host} {problem} and asks to wait {asked:.0f} s", "run it again then")
        if delay is None:
            break
        wait = max(delay, asked)
        say(f"{host} {problem}; trying again in {wait:.0f} s")
        sleep(wait)
    raise DnsError(
        f"could not {what}: {host} {problem}, {len(DELAYS_S) + 1} times", "check the network, then run it again"
    )


def _attempt(client: httpx.Client, method: str, url: str, request: dict[str, Any]) -> tuple[httpx.Response | None, str]:
    try:
        answer = client.request(method, url, **request)
    except httpx.TransportError as error:
        return None, _reason(error)
    limited = "limits the rate of requests (429)"
    return answer, limited if answer.status_code == 429 else f"answered {answer.status_code}"


def _again(answer: httpx.Response) -> bool:
    return answer.status_code == 429 or answer.status_code >= 500


def _retry_after(answer: httpx.Response) -> float:
    """Seconds (RFC 9110, 10.2.3: a number, or a date)."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _reason(error: httpx.TransportError) -> str:
    """In words; the system's own are at the bottom of the chain."""
    if isinstance(error, httpx.TimeoutException):
        return f"did not answer within {TIMEOUT_S:.0f} s"
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return f"can't be reached ({link.strerror})"
        link = link.__cause__ or link.__context__
    return f"broke off ({type(error).__name__})"
