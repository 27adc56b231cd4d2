"""nftables: what may come in, and from which side. Our own table only; nobody else's rules are touched.

pyinfra inventory/production.py deploys/firewall.py
"""

from ipaddress import ip_network

from pyinfra.api import deploy

from minipc.deploying import cluster_nodes, config, role
from minipc.operations import Absent, File, arm, confirm, install, place, unit

RULES = "/etc/minipc/firewall.nft"
UNDO = f"if [ -e {RULES} ]; then nft -f {RULES}; else nft delete table inet minipc; fi"


@deploy("firewall")
def firewall() -> None:
    settings = config()
    values = {
        "firewall": settings.firewall,
        # The mini PC alone has a VPN, and what pods need; the off-site machine has no pods either.
        "vpn": settings.vpn if role() == "mini" else None,
        "data_is_here": role() == "mini",
        "pod_interfaces": [] if role() == "offsite" else settings.firewall.pod_interfaces,
        "nodes": cluster_nodes(),
        "outer": list(dict.fromkeys(settings.firewall.public_interfaces + settings.firewall.operator_interfaces)),
        "service_address": settings.host.service_address,
        "data_ports": [settings.postgres.port, settings.redis.port],
    }
    networks = _by_family(settings.firewall.operator_networks)
    beside_the_vpn = networks if settings.firewall.operator_access == "networks" else _by_family([])

    # install
    install(name="install packages", packages=["nftables"])

    # configure
    place(
        name="configure the unit",
        component="firewall",
        entries=[
            File("minipc-firewall.service", "/etc/systemd/system/minipc-firewall.service"),
            # Debian's own unit flushes everybody's rules when it stops; ours takes its place.
            Absent("/etc/systemd/system/sysinit.target.wants/nftables.service"),
        ],
    )
    place(
        name="configure the way in from the console",
        component="firewall",
        entries=[
            File("rules.nft.j2", "/etc/minipc/firewall-break-glass.nft", mode="640", check="nft -c -f {path}"),
            File("break-glass.sh", "/usr/local/sbin/minipc-break-glass", mode="755", check="sh -n {path}"),
        ],
        values=values | networks,
    )
    rules = place(
        name="configure the rules",
        component="firewall",
        entries=[File("rules.nft.j2", RULES, mode="640", check="nft -c -f {path}")],
        values=values | beside_the_vpn,
        change="firewall",
    )

    # activate
    arm(name="arm the automatic revert", change="firewall", undo=UNDO)
    unit(name="apply the rules", unit="minipc-firewall.service", reload_on=[rules])
    confirm(
        name="confirm over a new connection",
        change="firewall",
        within_s=settings.host.confirm_within_s,
        # When the VPN is the only way in, this is where it shows that it works.
        address=settings.vpn.address if settings.firewall.operator_access == "vpn" else None,
    )


def _by_family(networks: list[str]) -> dict[str, list[str]]:
    return {
        f"operator_ipv{version}": [network for network in networks if ip_network(network).version == version]
        for version in (4, 6)
    }


firewall()
