"""Report whether the operator's ports answer outside the VPN. Every report of production says so."""

from __future__ import annotations

import os

from minipc.config.load import group_data
from minipc.core.environment import Environment
from minipc.core.variables import BREAK_GLASS_VARIABLE
from minipc.evidence.run import Run
from minipc.remote.inventory import Target

WHAT = "SSH in the VPN only"


def why_open(environment: Environment, target: Target) -> str:
    """Return why the operator's networks reach SSH and how to close them; empty if they do not or are meant to.

    The lab reaches its machines there on purpose, and the off-site host has no VPN.
    """
    firewall = target.settings.firewall
    if not environment.reports_vpn_bypass or target.role == "offsite" or firewall.operator_access == "vpn":
        return ""
    ports = ", ".join(map(str, firewall.operator_tcp))
    open_to = f"TCP {ports} are open to all of {', '.join(firewall.operator_networks)}"
    configured = group_data(environment.name)["firewall_operator_access"]
    # With a LAN address, the usual one is in the VPN.
    closed = configured == "vpn" or (configured is None and target.data.get("lan_address"))
    if os.environ.get(BREAK_GLASS_VARIABLE) and closed:
        return f"{open_to}: this run bypassed the VPN; `minipc apply firewall` through the tunnel closes them"
    address = target.settings.vpn.address
    return f'{open_to}; set address="{address}" in inventory/, then `minipc apply firewall`: docs/howto/vpn.md'


def tell(run: Run, environment: Environment, target: Target) -> None:
    """Show the reason and add it to the record as NOT EXERCISED."""
    why = why_open(environment, target)
    if why:
        run.note(why)
        run.not_exercised(WHAT, why, "firewall")
