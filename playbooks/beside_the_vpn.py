"""Whether the operator's ports answer beside the VPN. In production no report passes over that in silence."""

from __future__ import annotations

import os

from minipc.config.load import group_data
from minipc.inventory import Environment, Target
from minipc.run import Run
from minipc.variables import BREAK_GLASS_VARIABLE

WHAT = "SSH in the VPN only"


def why_open(environment: Environment, target: Target) -> str:
    """Why the operator's networks reach SSH, and what closes them; empty when they don't, or are meant to.

    The lab's machines are reached there on purpose, and the off-site machine has no VPN of its own.
    """
    firewall = target.settings.firewall
    if environment != "production" or target.role == "offsite" or firewall.operator_access == "vpn":
        return ""
    ports = ", ".join(map(str, firewall.operator_tcp))
    open_to = f"TCP {ports} are open to all of {', '.join(firewall.operator_networks)}"
    if os.environ.get(BREAK_GLASS_VARIABLE) and group_data(environment)["firewall_operator_access"] == "vpn":
        return f"{open_to}: this run came in beside the VPN; `minipc apply firewall`, through the tunnel, closes it"
    return f'{open_to}; firewall_operator_access = "vpn", then `minipc apply firewall`: docs/howto/vpn.md'


def tell(run: Run, environment: Environment, target: Target) -> None:
    """A sentence in the display, and an entry in the record."""
    why = why_open(environment, target)
    if why:
        run.note(why)
        run.not_exercised(WHAT, why, "firewall")
