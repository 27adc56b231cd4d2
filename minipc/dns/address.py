"""The address under which this computer is seen from outside: behind a router only someone outside can tell."""

from __future__ import annotations

import ipaddress
import time
from urllib.parse import urlsplit

import httpx

from minipc.dns.exchange import TIMEOUT_S, Say, Sleep, exchange, silent, tls_context
from minipc.dns.records import DnsError, Kind
from minipc.dns.reserved import is_documentation

# An unspecified local address of one family keeps the connection to that family.
_LOCAL = {"A": "0.0.0.0", "AAAA": "::"}  # noqa: S104 - where a connection comes from; nothing listens
_VERSION = {"A": 4, "AAAA": 6}


def public_address(kind: Kind, url: str, *, sleep: Sleep = time.sleep, say: Say = silent) -> str:
    """Asks over IPv4 for A, over IPv6 for AAAA.

    Args:
        url: answers with the bare address, or with lines of which one is `ip=ADDRESS` (Cloudflare's /cdn-cgi/trace).

    Raises:
        DnsError: no answer, or not a public address of that family.
    """
    what = f"learn the public IPv{_VERSION[kind]} address"
    transport = httpx.HTTPTransport(verify=tls_context(), local_address=_LOCAL[kind])
    with httpx.Client(transport=transport, timeout=TIMEOUT_S) as client:
        answer = exchange(client, "GET", url, what=what, sleep=sleep, say=say)
    if answer.status_code != 200:
        raise DnsError(f"could not {what}: {url} answered {answer.status_code}", "correct dns_address_url")
    return parse_address(answer.text, kind, url)


def parse_address(text: str, kind: Kind, url: str) -> str:
    """The address in an answer. Raises DnsError unless it is a public one of that family."""
    lines = text.strip().splitlines()
    found = next((line.removeprefix("ip=").strip() for line in lines if line.startswith("ip=")), text.strip())
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        raise DnsError(
            f"{url} did not answer with an address ({len(text)} characters)", "correct dns_address_url"
        ) from None
    # Documentation's addresses lead nowhere, except in the lab, where the one who tells has such an address too.
    reachable = address.is_global or (is_documentation(str(address)) and is_documentation(urlsplit(url).hostname or ""))
    if address.version != _VERSION[kind] or not reachable:
        raise DnsError(
            f"{url} says {address}, which is no public IPv{_VERSION[kind]} address",
            "correct dns_address_url, or check whether a proxy or your provider's NAT is in between",
        )
    return str(address)
