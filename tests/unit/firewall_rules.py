"""The firewall's rules as its template writes them, without a machine."""

from __future__ import annotations

import re
from typing import Any

from minipc.config import Settings, load
from minipc.pyinfra_ext.operations.files import File, render

NETWORKS = {"operator_ipv4": ["10.77.0.0/24"], "operator_ipv6": ["fd77::/64"]}
NEAR = {"near_ipv4": ["10.77.0.0/24"], "near_ipv6": ["fd77::/64"]}


def rules(settings: Settings | None = None, **values: Any) -> str:
    """The whole file.

    Args:
        settings: None: the lab's.
        values: instead of what a mini PC alone is given, with an operator's network of each family.
    """
    found = settings or load("lab", host_operator_keys=[])
    given = {
        "firewall": found.firewall,
        "vpn": found.vpn,
        "vpn_network": found.vpn.network,
        "vpn_network_ipv6": found.vpn.network_ipv6,
        "data_is_here": True,
        "pod_interfaces": found.firewall.pod_interfaces,
        "nodes": [],
        "server": None,
        "measured_port": 9100,
        "pod_port": 8472,
        "outer": ["public0", "operator0"],
        "service_address": found.host.service_address,
        "data_ports": [5432, 6379],
        "resolves_for_pods": False,
        "repository": [(4, "10.77.0.20", 2222), (6, "fd77::20", 22)],
        "any_interface": False,
        "trusted_ipv4": [],
        "trusted_ipv6": [],
        "operator_ingress": None,
        **NETWORKS,
        **NEAR,
    }
    entry = render("firewall", File("rules.nft.j2", "/x"), given | values)
    assert isinstance(entry, File)
    assert entry.content is not None
    return entry.content.decode()


def chain(ruleset: str, name: str) -> list[str]:
    """The rules of a chain, without comments."""
    found = re.search(rf"    chain {name} {{\n(.*?)\n    }}", ruleset, re.S)
    assert found, f"no chain {name}"
    lines = [line.strip() for line in found[1].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
