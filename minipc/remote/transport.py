"""SSH without Nagle's delay: 48 ms less for each remote command (docs/decisions/0004-transport.md)."""

from __future__ import annotations

import socket
from typing import Any

import paramiko


def without_delay(sock: Any, **kwargs: Any) -> paramiko.Transport:
    """Make a paramiko transport whose socket has TCP_NODELAY set, for `ssh_paramiko_connect_kwargs`."""
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return paramiko.Transport(sock, **kwargs)
