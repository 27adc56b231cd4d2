"""DNS: on a machine with a dynamic public address, a timer updates the public records.

pyinfra inventory/production.py deploys/dns.py
"""

import json

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import systemd

from minipc.dns.shipped import CODE, CONFIG_FILE, shipped
from minipc.pyinfra_ext.deploying import belongs_here, config, not_exercised, secrets
from minipc.pyinfra_ext.operations import Absent, Content, File, install, place, unit
from minipc.secrets.catalogue import dns_credentials

SERVICE = "/etc/systemd/system/minipc-dns.service"
TIMER = "/etc/systemd/system/minipc-dns.timer"
TOKEN_FILE = "/etc/minipc/dns.token"  # noqa: S105 - a path


@deploy("dns")
def dns() -> None:
    settings = config().dns
    if settings.provider == "none":
        not_exercised("dns", "no DNS provider is configured (dns_provider)", "dns")
    if not settings.follow:
        systemd.service(name="Disable the DNS update timer", service="minipc-dns.timer", running=False, enabled=False)
        place(
            name="Remove the DNS updater",
            component="dns",
            entries=[Absent(path) for path in (TIMER, SERVICE, TOKEN_FILE, CONFIG_FILE)],
        )
        return
    token = secrets({"token": dns_credentials(settings.provider)})["token"]

    # install
    install(name="Install packages for the DNS updater", packages=["python3-requests", "python3-yaml"])
    code = place(
        name="Copy the DNS updater",
        component="dns",
        entries=[Content(content, f"{CODE}/{path}") for path, content in shipped(settings.provider).items()],
    )

    # configure
    values = {
        "identity": host.data.machine_identity,
        "provider": settings.provider,
        "options": settings.options,
        "zone": settings.zone,
        "api_url": settings.api_url,
        "address_url": settings.address_url,
        "records": [[record.name, record.type] for record in settings.records],
    }
    files = place(
        name="Configure the DNS updater",
        component="dns",
        entries=[
            Content(f"{json.dumps(values, indent=2)}\n".encode(), CONFIG_FILE),
            Content(token.reveal().encode(), TOKEN_FILE, mode="600", secret=True),
            File("minipc-dns.service.j2", SERVICE),
            File("minipc-dns.timer.j2", TIMER),
        ],
        values={"dns": settings},
    )

    # activate
    unit(name="Enable the DNS update timer", unit="minipc-dns.timer", restart_on=[code, files])


if belongs_here("dns"):
    dns()
