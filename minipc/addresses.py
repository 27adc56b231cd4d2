"""How an address is written where a port may follow it."""

from __future__ import annotations


def bracketed(address: str) -> str:
    """As in a URL: an IPv6 address in brackets; an IPv4 address or a name as it is.

    >>> bracketed("fd00::1")
    '[fd00::1]'
    """
    return f"[{address}]" if ":" in address else address


def known_host(address: str, port: int, host_key: str) -> str:
    """The line of known_hosts for an SSH server on a port of its own: there every address has brackets.

    >>> known_host("192.0.2.1", 2222, "ssh-ed25519 AAAA")
    '[192.0.2.1]:2222 ssh-ed25519 AAAA'
    """
    return f"[{address}]:{port} {host_key}"
