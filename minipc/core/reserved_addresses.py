"""Addresses reserved for documentation. No network on the internet has them, so the lab's public side uses them."""

from __future__ import annotations

import ipaddress

# RFC 5737 and RFC 3849: for documentation, never routed.
_DOCUMENTATION = [
    ipaddress.ip_network(each) for each in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def is_documentation(host: str) -> bool:
    """Return whether a host is an address reserved for documentation; False for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _DOCUMENTATION)
