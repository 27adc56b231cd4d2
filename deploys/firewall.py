"""nftables: what may come in, and from which side. Our own table only; nobody else's rules are touched.

pyinfra inventory/production.py deploys/firewall.py
"""

from ipaddress import ip_network

from pyinfra.api import deploy

from minipc.deploy_repository import literal_address
from minipc.deploying import cluster_nodes, cluster_server, config, offsite_address, role
from minipc.operations import Absent, File, arm, confirm, install, place, unit
from minipc.ports import MONITORING

RULES = "/etc/minipc/firewall.nft"
# The unit's own file may be among what was put back.
UNDO = f"systemctl daemon-reload; if [ -e {RULES} ]; then nft -f {RULES}; else nft delete table inet minipc; fi"


@deploy("firewall")
def firewall() -> None:
    settings = config()
    values = {
        "firewall": settings.firewall,
        # The mini PC alone has a VPN, and what pods need; the off-site machine has no pods either.
        "vpn": settings.vpn if role() == "mini" else None,
        "vpn_network": settings.vpn.network,
        "vpn_network_ipv6": settings.vpn.network_ipv6,
        "data_is_here": role() == "mini",
        "pod_interfaces": [] if role() == "offsite" else settings.firewall.pod_interfaces,
        "nodes": cluster_nodes(),
        "server": cluster_server(),
        "measured_port": MONITORING["node"],
        "outer": list(dict.fromkeys(settings.firewall.public_interfaces + settings.firewall.operator_interfaces)),
        "service_address": settings.host.service_address,
        # The last is where a restore drill's database listens meanwhile.
        "data_ports": [settings.postgres.port, settings.redis.port, settings.backups.drill_port],
        "repository": literal_address(settings.argocd.repository, offsite_address(), settings.offsite.sftp_port),
        **_by_family("near", settings.firewall.operator_networks),
        "any_interface": False,
    }
    networks = _by_family("operator", settings.firewall.operator_networks)
    beside_the_vpn = networks if settings.firewall.operator_access == "networks" else _by_family("operator", [])

    # install
    install(name="install packages", packages=["nftables"])

    # configure
    place(
        name="leave Debian's own unit out",
        component="firewall",
        # It flushes everybody's rules when it stops; ours takes its place.
        entries=[Absent("/etc/systemd/system/sysinit.target.wants/nftables.service")],
    )
    service = place(
        name="configure the unit",
        component="firewall",
        entries=[File("minipc-firewall.service", "/etc/systemd/system/minipc-firewall.service")],
        change="firewall",
    )
    place(
        name="configure the way in from the console",
        component="firewall",
        entries=[
            File("rules.nft.j2", "/etc/minipc/firewall-break-glass.nft", mode="640", check="nft -c -f {path}"),
            File("break-glass.sh", "/usr/local/sbin/minipc-break-glass", mode="755", check="sh -n {path}"),
        ],
        values=values | networks | {"any_interface": True},
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
    # A restart opens nothing: the unit stops without a command, and its start replaces the rules in one transaction.
    unit(name="apply the rules", unit="minipc-firewall.service", restart_on=[service], reload_on=[rules])
    confirm(
        name="confirm over a new connection",
        change="firewall",
        within_s=settings.host.confirm_within_s,
        # When the VPN is the only way in, this is where it shows that it works.
        address=settings.vpn.address if settings.firewall.operator_access == "vpn" else None,
    )


def _by_family(name: str, networks: list[str]) -> dict[str, list[str]]:
    return {
        f"{name}_ipv{version}": [network for network in networks if ip_network(network).version == version]
        for version in (4, 6)
    }


firewall()
