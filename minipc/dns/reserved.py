"""Addresses that no network on the internet has, and the lab's public side therefore has."""

from __future__ import annotations

import ipaddress

# RFC 5737 and RFC 3849: for documentation, never routed.
_DOCUMENTATION = [
    ipaddress.ip_network(each) for each in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def is_documentation(host: str) -> bool:
    """Whether a host is such an address; a name is not."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _DOCUMENTATION)
