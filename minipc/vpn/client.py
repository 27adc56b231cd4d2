"""Configuration of a VPN client: a file for wg-quick and the WireGuard apps, and the same as a QR code."""

from __future__ import annotations

import io
from collections.abc import Sequence

import segno

from minipc.config import Settings
from minipc.core.addresses import bracketed
from minipc.core.errors import ConfigError
from minipc.secrets import Secret


def client_config(settings: Settings, private: Secret, server_public_key: str, allowed_ips: Sequence[str]) -> str:
    """Return the client's configuration. Only traffic to the machine goes through the tunnel.

    Args:
        private: the client's private key.
        allowed_ips: the client's addresses in the tunnel.

    Raises:
        ConfigError: there is neither `vpn_endpoint` nor a public service whose domain could be used.
    """
    vpn = settings.vpn
    endpoint = vpn.endpoint or settings.services.domain
    if endpoint is None:
        raise ConfigError(
            "no address is known where clients reach the VPN: there is no public service",
            "set vpn_endpoint in group_data/",
        )
    return f"""\
[Interface]
PrivateKey = {private.reveal()}
Address = {", ".join(allowed_ips)}

[Peer]
PublicKey = {server_public_key}
Endpoint = {bracketed(endpoint)}:{vpn.port}
AllowedIPs = {vpn.address}/32, {vpn.address_ipv6}/128
PersistentKeepalive = {vpn.keepalive_s}
"""


def qr_code(text: str) -> str:
    """Return the text as a QR code for a terminal."""

    out = io.StringIO()
    segno.make(text, error="L", micro=False).terminal(out, compact=True)
    return out.getvalue()
