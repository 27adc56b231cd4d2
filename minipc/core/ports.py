"""Loopback ports that are not settings: the programs' defaults, except Caddy's metrics port, which we chose."""

from __future__ import annotations

OPERATOR_INGRESS = 10443
"""Where the ingress listens for the operator's VPN: the firewall redirects port 443 of the VPN to it."""

POD_VXLAN, POD_WIREGUARD = 8472, 51871
"""UDP ports of the traffic between pods of different machines: flannel's default, and ours where it is encrypted."""

MONITORING = {
    "prometheus": 9090,
    "alertmanager": 9093,
    "node": 9100,
    "blackbox": 9115,
    "redis": 9121,
    "caddy": 9180,
    "postgres": 9187,
}
