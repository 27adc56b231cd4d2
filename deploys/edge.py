"""Caddy: the public door. Certificates, redirects, headers, access log, maintenance page.

pyinfra inventory/production.py deploys/edge.py
"""

from pyinfra.api import deploy

from minipc.guards import config
from minipc.operations import Directory, File, install, place, unit


@deploy("edge")
def edge() -> None:
    settings = config()

    # install
    install(name="install packages", packages=["caddy"])

    # configure
    files = place(
        name="configure",
        component="edge",
        entries=[
            Directory("/var/log/caddy", owner="caddy", mode="750"),
            Directory("/usr/share/minipc"),
            File("maintenance.html", "/usr/share/minipc/maintenance.html"),
            File(
                "Caddyfile.j2",
                "/etc/caddy/Caddyfile",
                # As caddy, so that validating doesn't leave files of root's in its log folder.
                check="runuser -u caddy -- caddy validate --config {path} --adapter caddyfile",
            ),
        ],
        values={"edge": settings.edge},
    )
    hardening = place(
        name="configure the unit",
        component="edge",
        entries=[File("override.conf", "/etc/systemd/system/caddy.service.d/minipc.conf")],
    )

    # activate
    unit(name="activate", unit="caddy.service", restart_on=[hardening], reload_on=[files])


edge()
