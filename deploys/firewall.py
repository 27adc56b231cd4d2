"""nftables: what may come in, and from which side. Our own table only; nobody else's rules are touched.

pyinfra inventory/production.py deploys/firewall.py
"""

from ipaddress import ip_network

from pyinfra.api import deploy

from minipc.guards import config
from minipc.operations import Absent, File, install, place, unit


@deploy("firewall")
def firewall() -> None:
    settings = config()
    networks = [ip_network(network) for network in settings.firewall.operator_networks]

    # install
    install(name="install packages", packages=["nftables"])

    # configure
    rules = place(
        name="configure the rules",
        component="firewall",
        entries=[
            File("rules.nft.j2", "/etc/minipc/firewall.nft", mode="640", check="nft -c -f {path}"),
            File("minipc-firewall.service", "/etc/systemd/system/minipc-firewall.service"),
            # Debian's own unit flushes everybody's rules when it stops; ours takes its place.
            Absent("/etc/systemd/system/sysinit.target.wants/nftables.service"),
        ],
        values={
            "firewall": settings.firewall,
            "operator_ipv4": [network for network in networks if network.version == 4],
            "operator_ipv6": [network for network in networks if network.version == 6],
        },
    )

    # activate
    unit(name="apply the rules", unit="minipc-firewall.service", reload_on=[rules])


firewall()
