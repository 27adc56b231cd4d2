"""nftables: which packets may come in, and from which side. Only the table `minipc` is changed.

pyinfra inventory/production.py deploys/firewall.py
"""

from ipaddress import ip_network

from pyinfra.api import deploy

from minipc.config import Settings
from minipc.core.ports import MONITORING, OPERATOR_INGRESS, POD_VXLAN, POD_WIREGUARD
from minipc.gitops.hosted_repository import literal_address
from minipc.pyinfra_ext.deploying import (
    cluster_is_encrypted,
    cluster_nodes,
    cluster_server,
    config,
    offsite_address,
    role,
)
from minipc.pyinfra_ext.operations import Absent, File, arm, confirm, install, place, shell_program, unit
from minipc.services.ingress import trusted_proxies
from minipc.services.ports import data_ports, loopback_ports, network_interface

RULES = "/etc/minipc/firewall.nft"
LOOPBACK = "/etc/minipc/loopback.nft"
# The unit file may be among the restored files.
UNDO = f"systemctl daemon-reload; if [ -e {RULES} ]; then nft -f {RULES}; else nft delete table inet minipc; fi"


@deploy("firewall")
def firewall() -> None:
    settings = config()
    values = {
        "firewall": settings.firewall,
        # Only the mini PC has a VPN and serves data to pods. The off-site host has no pods.
        "vpn": settings.vpn if role() == "mini" else None,
        "vpn_network": settings.vpn.network,
        "vpn_network_ipv6": settings.vpn.network_ipv6,
        "data_is_here": role() == "mini",
        "pod_interfaces": _pod_interfaces(settings),
        "resolves_for_pods": settings.services.runtime == "podman",
        "nodes": cluster_nodes(),
        "pod_port": POD_WIREGUARD if cluster_is_encrypted() else POD_VXLAN,
        "server": cluster_server(),
        "measured_port": MONITORING["node"],
        "outer": list(dict.fromkeys(settings.firewall.public_interfaces + settings.firewall.operator_interfaces)),
        "service_address": settings.host.service_address,
        # The last one is the temporary PostgreSQL server of a restore drill.
        "data_ports": data_ports(settings),
        "repository": literal_address(settings.argocd.repository, offsite_address(), settings.offsite.sftp_port),
        **_by_family("near", settings.firewall.operator_networks),
        **_by_family("trusted", trusted_proxies(settings.services.public) if role() == "mini" else []),
        "operator_ingress": OPERATOR_INGRESS if role() == "mini" and settings.services.for_operator else None,
        "any_interface": False,
    }
    networks = _by_family("operator", settings.firewall.operator_networks)
    operator_networks = networks if settings.firewall.operator_access == "networks" else _by_family("operator", [])

    # install
    install(name="Install nftables", packages=["nftables"])

    # configure
    place(
        name="Disable Debian's nftables unit",
        component="firewall",
        # Debian's unit flushes all tables when it stops. Ours replaces it.
        entries=[Absent("/etc/systemd/system/sysinit.target.wants/nftables.service")],
    )
    service = place(
        name="Configure the firewall unit",
        component="firewall",
        entries=[File("minipc-firewall.service.j2", "/etc/systemd/system/minipc-firewall.service")],
        values={"loopback": LOOPBACK if role() == "mini" else None},
        change="firewall",
    )
    # It cannot lock out anybody: root and the operator may connect to everything.
    loopback = place(
        name="Configure which account may connect to which port on loopback",
        component="firewall",
        entries=[File("loopback.nft.j2", LOOPBACK, mode="640", check="nft -c -f {path}")]
        if role() == "mini"
        else [Absent(LOOPBACK)],
        values={
            "allowed": loopback_ports(settings),
            "operator": settings.host.operator_user,
            "vpn_ports": list(settings.vpn.services.values()),
            "pod_interfaces": _pod_interfaces(settings),
        },
    )
    place(
        name="Configure break-glass access from the console",
        component="firewall",
        entries=[
            File("rules.nft.j2", "/etc/minipc/firewall-break-glass.nft", mode="640", check="nft -c -f {path}"),
            shell_program("break-glass.sh", "/usr/local/sbin/minipc-break-glass"),
        ],
        values=values | networks | {"any_interface": True},
    )
    rules = place(
        name="Configure firewall rules",
        component="firewall",
        entries=[File("rules.nft.j2", RULES, mode="640", check="nft -c -f {path}")],
        values=values | operator_networks,
        change="firewall",
    )

    # activate
    arm(name="Arm the rollback of firewall rules", change="firewall", undo=UNDO)
    # A restart opens nothing: stopping runs no command, and starting replaces the rules in one transaction.
    unit(name="Apply firewall rules", unit="minipc-firewall.service", restart_on=[service], reload_on=[rules, loopback])
    confirm(
        name="Confirm firewall rules over a new connection",
        change="firewall",
        within_s=settings.host.confirm_within_s,
        # If the VPN is the only way in, this confirmation proves that it works.
        address=settings.vpn.address if settings.firewall.operator_access == "vpn" else None,
    )


def _pod_interfaces(settings: Settings) -> list[str]:
    """Return the interfaces of pods: of K3s, and of the networks of services under podman."""
    if role() == "offsite":
        return []
    podman = settings.services.declared if settings.services.runtime == "podman" else ()
    return [*settings.firewall.pod_interfaces, *(network_interface(service.name) for service in podman)]


def _by_family(name: str, networks: list[str]) -> dict[str, list[str]]:
    return {
        f"{name}_ipv{version}": [network for network in networks if ip_network(network).version == version]
        for version in (4, 6)
    }


firewall()
