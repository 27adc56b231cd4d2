"""Format addresses that a port may follow."""

from __future__ import annotations


def bracketed(address: str) -> str:
    """Return an address as in a URL: IPv6 in brackets, an IPv4 address or a name unchanged.

    >>> bracketed("fd00::1")
    '[fd00::1]'
    """
    return f"[{address}]" if ":" in address else address


def known_host(address: str, port: int, host_key: str) -> str:
    """Return the known_hosts line for an SSH server on a port other than 22, where every address has brackets.

    >>> known_host("192.0.2.1", 2222, "ssh-ed25519 AAAA")
    '[192.0.2.1]:2222 ssh-ed25519 AAAA'
    """
    return f"[{address}]:{port} {host_key}"
