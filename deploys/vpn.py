"""WireGuard: the operator's way in. One UDP port that answers nobody without a peer's key.

pyinfra inventory/production.py deploys/vpn.py
"""

from ipaddress import ip_network

from pyinfra import host
from pyinfra.api import deploy

from minipc.deploying import belongs_here, config, secrets
from minipc.facts.machine import WireguardInKernel
from minipc.operations import Directory, File, SecretFile, arm, confirm, install, place, unit, units
from minipc.secrets.catalogue import VPN_KEY

SYSTEMD = "/etc/systemd/system"
ETC = "/etc/minipc/vpn"
CONF = f"{ETC}/wg0.conf"
# The unit's own file may be among what was put back. Where there was none before, the old one still has to stop it.
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
    install(name="install packages", packages=["wireguard-tools", *([] if in_kernel else ["wireguard-go"])])

    # configure
    service = place(
        name="configure the unit",
        component="vpn",
        entries=[File("minipc-vpn.service.j2", f"{SYSTEMD}/minipc-vpn.service")],
        values={"in_kernel": in_kernel},
        change="vpn",
    )
    device = place(
        name="configure the tunnel",
        component="vpn",
        entries=[File("vpn-up.sh.j2", "/usr/local/lib/minipc/vpn-up", mode="755", check="sh -n {path}")],
        values={"vpn": settings.vpn, "lengths": [network.prefixlen for network in own], "beyond": beyond},
        change="vpn",
    )
    peers = place(
        name="configure key and peers",
        component="vpn",
        entries=[Directory(ETC, mode="700"), SecretFile("wg0.conf.j2", CONF)],
        values={"vpn": settings.vpn, "private_key": key.reveal()},
        change="vpn",
    )

    services = settings.vpn.services
    doors = place(
        name="configure the ways to services on loopback",
        component="vpn",
        entries=[
            File(f"door.{kind}.j2", f"{SYSTEMD}/minipc-door-{name}.{kind}", values={"name": name, "port": port})
            for name, port in services.items()
            for kind in ("socket", "service")
        ],
        values={"vpn": settings.vpn},
    )

    # activate
    arm(name="arm the automatic revert", change="vpn", undo=UNDO)
    unit(name="bring up the tunnel", unit="minipc-vpn.service", restart_on=[service, device], reload_on=[peers])
    confirm(name="confirm over a new connection", change="vpn", within_s=settings.host.confirm_within_s)
    sockets = [f"minipc-door-{name}.socket" for name in services]
    units(name="listen for who comes through it", units=sockets, restart_on=[doors])


if belongs_here("vpn"):
    vpn()
