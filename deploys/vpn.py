"""WireGuard: operator access. Its UDP port answers only clients with a valid key.

pyinfra inventory/production.py deploys/vpn.py
"""

from ipaddress import ip_network

from pyinfra import host
from pyinfra.api import deploy

from minipc.pyinfra_ext.deploying import belongs_here, config, secrets
from minipc.pyinfra_ext.facts.machine import WireguardInKernel
from minipc.pyinfra_ext.operations import Directory, File, SecretFile, arm, confirm, install, place, unit, units
from minipc.secrets.catalogue import VPN_KEY

SYSTEMD = "/etc/systemd/system"
ETC = "/etc/minipc/vpn"
CONF = f"{ETC}/wg0.conf"
# The unit file may be among the restored files. If there was none before, the running unit must be stopped first.
UNDO = (
    f"if [ -e {CONF} ]; then systemctl daemon-reload; systemctl restart minipc-vpn; "
    "else systemctl stop minipc-vpn; systemctl daemon-reload; fi"
)


@deploy("vpn")
def vpn() -> None:
    settings = config()
    key = secrets({"private": VPN_KEY})["private"]
    in_kernel = host.get_fact(WireguardInKernel)
    own = [ip_network(network) for network in settings.vpn.networks]
    allowed = [ip_network(each) for peer in settings.vpn.peers for each in peer.allowed_ips]
    beyond = [each for each in allowed if not any(each.version == n.version and each.subnet_of(n) for n in own)]

    # install
    install(name="Install WireGuard", packages=["wireguard-tools", *([] if in_kernel else ["wireguard-go"])])

    # configure
    service = place(
        name="Configure the WireGuard unit",
        component="vpn",
        entries=[File("minipc-vpn.service.j2", f"{SYSTEMD}/minipc-vpn.service")],
        values={"in_kernel": in_kernel},
        change="vpn",
    )
    device = place(
        name="Configure the WireGuard interface",
        component="vpn",
        entries=[File("vpn-up.sh.j2", "/usr/local/lib/minipc/vpn-up", mode="755", check="sh -n {path}")],
        values={"vpn": settings.vpn, "lengths": [network.prefixlen for network in own], "beyond": beyond},
        change="vpn",
    )
    peers = place(
        name="Configure the WireGuard key and clients",
        component="vpn",
        entries=[Directory(ETC, mode="700"), SecretFile("wg0.conf.j2", CONF)],
        values={"vpn": settings.vpn, "private_key": key.reveal()},
        change="vpn",
    )

    services = settings.vpn.services
    proxies = place(
        name="Configure VPN socket proxies",
        component="vpn",
        entries=[
            File(f"door.{kind}.j2", f"{SYSTEMD}/minipc-door-{name}.{kind}", values={"name": name, "port": port})
            for name, port in services.items()
            for kind in ("socket", "service")
        ],
        values={"vpn": settings.vpn},
    )

    # activate
    arm(name="Arm the rollback of the VPN", change="vpn", undo=UNDO)
    unit(
        name="Start the WireGuard interface", unit="minipc-vpn.service", restart_on=[service, device], reload_on=[peers]
    )
    confirm(name="Confirm the VPN over a new connection", change="vpn", within_s=settings.host.confirm_within_s)
    sockets = [f"minipc-door-{name}.socket" for name in services]
    units(name="Enable VPN socket proxies", units=sockets, restart_on=[proxies])


if belongs_here("vpn"):
    vpn()
