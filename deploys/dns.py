"""DNS: on a machine whose public address changes by itself, a timer has the public records follow it.

pyinfra inventory/production.py deploys/dns.py
"""

import json

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import systemd

from minipc.deploying import belongs_here, config, not_exercised, secrets
from minipc.dns.shipped import CODE, CONFIG_FILE, SHIPPED
from minipc.operations import Absent, Content, File, install, place, unit
from minipc.paths import ROOT
from minipc.secrets.catalogue import DNS_TOKEN

SERVICE = "/etc/systemd/system/minipc-dns.service"
TIMER = "/etc/systemd/system/minipc-dns.timer"
TOKEN_FILE = "/etc/minipc/dns.token"  # noqa: S105 - a path


@deploy("dns")
def dns() -> None:
    settings = config().dns
    if settings.provider == "none":
        not_exercised("dns", "no DNS provider is configured (dns_provider)", "dns")
    if not settings.follow:
        systemd.service(name="stop following the address", service="minipc-dns.timer", running=False, enabled=False)
        place(
            name="remove what followed it",
            component="dns",
            entries=[Absent(path) for path in (TIMER, SERVICE, TOKEN_FILE, CONFIG_FILE)],
        )
        return
    token = secrets({"token": DNS_TOKEN})["token"]

    # install
    install(name="install packages", packages=["python3-httpx"])
    code = place(
        name="place the code",
        component="dns",
        entries=[Content((ROOT / path).read_bytes(), f"{CODE}/{path}") for path in SHIPPED],
    )

    # configure
    values = {
        "identity": host.data.machine_identity,
        "zone": settings.zone,
        "api_url": settings.api_url,
        "address_url": settings.address_url,
        "records": [[record.name, record.type] for record in settings.records],
    }
    files = place(
        name="configure",
        component="dns",
        entries=[
            Content(f"{json.dumps(values, indent=2)}\n".encode(), CONFIG_FILE),
            Content(token.reveal().encode(), TOKEN_FILE, mode="600", secret=True),
            File("minipc-dns.service", SERVICE),
            File("minipc-dns.timer.j2", TIMER),
        ],
        values={"dns": settings},
    )

    # activate
    unit(name="look now and then", unit="minipc-dns.timer", restart_on=[code, files])


if belongs_here("dns"):
    dns()
