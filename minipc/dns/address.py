"""The address under which this computer is seen from outside: behind a router only a server outside can tell."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import urllib3

from minipc.core.reserved_addresses import is_documentation
from minipc.dns.records import DnsError, Kind

# An unspecified local address of one family keeps the connection to that family.
_LOCAL = {"A": "0.0.0.0", "AAAA": "::"}  # noqa: S104 - where a connection comes from; nothing listens
_VERSION = {"A": 4, "AAAA": 6}
_AGAIN = 3
RETRIES = urllib3.Retry(
    _AGAIN,
    redirect=False,
    status_forcelist=(429, 500, 502, 503, 504),
    backoff_factor=2,
    respect_retry_after_header=False,
)


def public_address(kind: Kind, url: str, retries: urllib3.Retry = RETRIES) -> str:
    """Ask over IPv4 for A, over IPv6 for AAAA.

    Args:
        url: answers with the bare address, or with lines of which one is `ip=ADDRESS` (Cloudflare's /cdn-cgi/trace).
        retries: how often to try again.

    Raises:
        DnsError: no answer, or not a public address of that family.
    """
    what = f"could not learn the public IPv{_VERSION[kind]} address"
    problem = ""
    with urllib3.PoolManager(source_address=(_LOCAL[kind], 0), timeout=10, retries=retries) as client:
        try:
            answer = client.request("GET", url)
        except urllib3.exceptions.HTTPError as error:
            problem = connection_problem(error)
    if problem:
        raise DnsError(f"{what}: {url} {problem}, {_AGAIN + 1} times", "check the network, then run it again")
    if answer.status != 200:
        raise DnsError(f"{what}: {url} answered {answer.status}", "correct dns_address_url")
    return parse_address(answer.data.decode(errors="replace"), kind, url)


def connection_problem(error: BaseException) -> str:
    """Return in words why there was no answer; the system's own words are at the end of the chain."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return f"can't be reached ({link.strerror})"
        link = getattr(link, "reason", None) or link.__cause__ or link.__context__
    return f"can't be reached ({type(error).__name__})"


def parse_address(text: str, kind: Kind, url: str) -> str:
    """Return the address in an answer. Raises DnsError unless it is a public one of that family."""
    lines = text.strip().splitlines()
    found = next((line.removeprefix("ip=").strip() for line in lines if line.startswith("ip=")), text.strip())
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        raise DnsError(
            f"{url} did not answer with an address ({len(text)} characters)", "correct dns_address_url"
        ) from None
    # Documentation's addresses lead nowhere, except in the lab, where the server that tells has such an address too.
    reachable = address.is_global or (is_documentation(str(address)) and is_documentation(urlsplit(url).hostname or ""))
    if address.version != _VERSION[kind] or not reachable:
        raise DnsError(
            f"{url} says {address}, which is not a public IPv{_VERSION[kind]} address",
            "correct dns_address_url, or check whether a proxy or your provider's NAT is in between",
        )
    return str(address)
