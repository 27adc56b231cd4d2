"""What a device needs to connect: a file for wg-quick and the WireGuard apps, and the same as a QR code."""

from __future__ import annotations

import io
from collections.abc import Sequence

from minipc.addresses import bracketed
from minipc.config import Settings
from minipc.secrets import Secret


def client_config(settings: Settings, private: Secret, server_public_key: str, allowed_ips: Sequence[str]) -> str:
    """The device's configuration. Its traffic to anywhere but the machine stays outside the tunnel.

    Args:
        private: the device's own key.
        allowed_ips: its addresses in the tunnel.
    """
    vpn = settings.vpn
    return f"""\
[Interface]
PrivateKey = {private.reveal()}
Address = {", ".join(allowed_ips)}

[Peer]
PublicKey = {server_public_key}
Endpoint = {bracketed(vpn.endpoint or settings.edge.domain)}:{vpn.port}
AllowedIPs = {vpn.address}/32, {vpn.address_ipv6}/128
PersistentKeepalive = {vpn.keepalive_s}
"""


def qr_code(text: str) -> str:
    """The text as a QR code for a terminal."""
    import segno

    out = io.StringIO()
    segno.make(text, error="L", micro=False).terminal(out, compact=True)
    return out.getvalue()
