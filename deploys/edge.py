"""Caddy: the public door. Certificates, redirects, headers, access log, maintenance page.

pyinfra inventory/production.py deploys/edge.py
"""

from pyinfra.api import deploy

from minipc.deploying import belongs_here, config
from minipc.operations import Absent, Content, Directory, File, install, place, unit
from minipc.operations.backups import state_restored
from minipc.ports import MONITORING

HOME = "/var/lib/caddy"
STATE = f"{HOME}/.local/share/caddy"
ACME_ROOT = "/etc/caddy/acme-root.pem"


@deploy("edge")
def edge() -> None:
    settings = config()

    # install
    install(name="install packages", packages=["caddy"])

    # configure
    if settings.backups.offsite and settings.postgres.from_backup != "refuse":
        # What the lost machine had: no new certificates to ask for, no limit of the ACME server to run into.
        state_restored(name="have the certificates again", paths=[STATE], then=f"chown -R caddy:caddy {HOME}")
    if settings.edge.acme_root:
        # First: the check of the Caddyfile reads it.
        place(
            name="configure what the ACME server is trusted by",
            component="edge",
            entries=[Content(settings.edge.acme_root.encode(), ACME_ROOT)],
        )
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
            *([] if settings.edge.acme_root else [Absent(ACME_ROOT)]),
        ],
        values={
            "edge": settings.edge,
            "upstream": settings.edge.upstream or f"127.0.0.1:{settings.workload.port}",
            "metrics_port": MONITORING["caddy"],
        },
    )
    hardening = place(
        name="configure the unit",
        component="edge",
        entries=[File("override.conf", "/etc/systemd/system/caddy.service.d/minipc.conf")],
    )

    # activate
    # A reload drops nobody. With HTTP/3 it can't do: Caddy 2.6 goes on showing the certificates of before there.
    restart_on, reload_on = ([hardening, files], []) if settings.edge.http3 else ([hardening], [files])
    unit(name="activate", unit="caddy.service", restart_on=restart_on, reload_on=reload_on)


if belongs_here("edge"):
    edge()
