"""Ask a home router for the address that it has towards the internet (NAT-PMP, RFC 6886)."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, ip_network

PORT = 5351
TIMEOUT_S = 1.0
_TRIES = 2
# RFC 6598: between a provider's carrier-grade NAT and its customers.
_SHARED = ip_network("100.64.0.0/10")


def external_address(gateway: str, port: int = PORT) -> IPv4Address | None:
    """Return the router's own public-side address; None if it does not answer (many routers do not)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT_S)
        for _ in range(_TRIES):
            try:
                client.sendto(b"\0\0", (gateway, port))
                answer, sender = client.recvfrom(64)
            except OSError:
                continue
            # Version 0, operation 128, result 0, seconds since its start, address.
            if sender[0] == gateway and len(answer) == 12 and answer[:4] == b"\0\x80\0\0":
                return IPv4Address(answer[8:])
    return None


def reachable_from_internet(router: IPv4Address | None, seen_outside: str | None) -> tuple[bool | None, str]:
    """Return whether ports that the router forwards can be reached from the internet, and why; None: not known.

    Args:
        router: the router's public-side address.
        seen_outside: the address that a server on the internet sees.
    """
    if router is None:
        return None, "the router does not tell its public address"
    if router in _SHARED or not router.is_global:
        return False, f"the router's own address is {router}: your provider uses carrier-grade NAT (CGNAT)"
    if seen_outside is None:
        return None, f"the router's address is {router}, but no server on the internet could be asked to compare it"
    if str(router) != seen_outside:
        return False, f"the router's address is {router}, the internet sees {seen_outside}: another NAT is in between"
    return True, f"the router has the public address {router}"
