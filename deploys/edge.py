"""Caddy: the ingress, with a site for each service: certificates, redirects, headers, limits, access log.

pyinfra inventory/production.py deploys/edge.py
"""

from __future__ import annotations

from pyinfra.api import deploy
from pyinfra.operations import systemd

from minipc.config import Settings
from minipc.pyinfra_ext.deploying import belongs_here, config, secrets
from minipc.pyinfra_ext.operations import Absent, Directory, File, SecretFile, install, place, unit
from minipc.pyinfra_ext.operations.backups import state_restored
from minipc.pyinfra_ext.operations.files import Content, Entry, Placed
from minipc.secrets.catalogue import ingress_password
from minipc.secrets.hashing import hashed
from minipc.services import ingress

HOME = "/var/lib/caddy"
STATE = f"{HOME}/.local/share/caddy"
ACME_ROOT = "/etc/caddy/acme-root.pem"
# As caddy, so that validating doesn't leave files of root's in its log folder.
CHECK = "runuser -u caddy -- caddy validate --config {path} --adapter caddyfile"
OPERATOR_UNIT = "caddy-operator.service"
RATE_UNIT = "minipc-request-rate.service"


@deploy("edge")
def edge() -> None:
    settings = config()
    all_sites = ingress.sites(settings.services.declared)
    counted = [site for site in all_sites if site.ingress.requests_per_s]

    # install
    install(name="Install Caddy", packages=["caddy", *(["haproxy"] if counted else [])])

    # configure
    if settings.has_offsite and settings.postgres.from_backup != "refuse":
        # Restored from the lost machine, so a rebuild needs no new certificates and hits no rate limit.
        state_restored(name="Restore certificates and ACME state", paths=[STATE], then=f"chown -R caddy:caddy {HOME}")
    # Placed first, because the check of the Caddyfile reads them.
    place(
        name="Configure passwords and the ACME server's CA certificate",
        component="edge",
        entries=[
            _passwords(settings, all_sites),
            Content(settings.edge.acme_root.encode(), ACME_ROOT) if settings.edge.acme_root else Absent(ACME_ROOT),
        ],
    )
    _limit_request_rates(counted)
    files = place(
        name="Configure Caddy",
        component="edge",
        entries=[
            Directory("/var/log/caddy", owner="caddy", mode="750"),
            Directory("/usr/share/minipc"),
            File("maintenance.html", "/usr/share/minipc/maintenance.html"),
            File("Caddyfile.j2", "/etc/caddy/Caddyfile", check=CHECK),
        ],
        values=ingress.caddyfile_values(settings, for_operator=False),
    )
    hardening = _hardened("Configure the Caddy unit", "caddy")

    # activate
    # A reload drops nobody. With HTTP/3 it can't do: Caddy 2.6 goes on showing the certificates of before there.
    restart_on, reload_on = ([hardening, files], []) if settings.edge.http3 else ([hardening], [files])
    unit(name="Start Caddy", unit="caddy.service", restart_on=restart_on, reload_on=reload_on)
    _serve_the_operator(settings)


def _passwords(settings: Settings, sites: list[ingress.Site]) -> Entry:
    """Return the file with the user and the hash of the password of each site that asks for one."""
    asking = [site for site in sites if site.basic]
    found = secrets({site.name: ingress_password(site.name) for site in asking})
    hashes = {name: hashed(password, f"{settings.environment} {name}") for name, password in found.items()}
    values = {"sites": asking, "hashes": hashes}
    return SecretFile("passwords.j2", ingress.PASSWORDS, group="caddy", mode="640", values=values)


def _hardened(name: str, runtime_directory: str) -> Placed:
    return place(
        name=name,
        component="edge",
        entries=[File("override.conf.j2", f"/etc/systemd/system/{runtime_directory}.service.d/minipc.conf")],
        values={"runtime_directory": runtime_directory},
    )


def _serve_the_operator(settings: Settings) -> None:
    """Run a second Caddy for services of the operator: the public one does not even know their names."""
    unit_file, caddyfile = f"/etc/systemd/system/{OPERATOR_UNIT}", "/etc/caddy/operator.Caddyfile"
    if not settings.services.for_operator:
        _remove("the ingress for the operator", OPERATOR_UNIT, [unit_file, caddyfile])
        return
    files = place(
        name="Configure the ingress for the operator",
        component="edge",
        entries=[
            File("Caddyfile.j2", caddyfile, check=CHECK),
            File("caddy-operator.service", unit_file),
        ],
        values=ingress.caddyfile_values(settings, for_operator=True),
    )
    hardening = _hardened("Configure the unit of the ingress for the operator", "caddy-operator")
    unit(name="Start the ingress for the operator", unit=OPERATOR_UNIT, restart_on=[hardening, files])


def _limit_request_rates(sites: list[ingress.Site]) -> None:
    """Run HAProxy as the program that counts the requests of each client; Caddy asks it before each request."""
    unit_file, conf = f"/etc/systemd/system/{RATE_UNIT}", "/etc/minipc/request-rate.cfg"
    if not sites:
        _remove("the request rate limit", RATE_UNIT, [unit_file, conf])
        return
    # Debian's unit would run HAProxy with an example configuration.
    wanted = "/etc/systemd/system/multi-user.target.wants/haproxy.service"
    place(name="Disable Debian's HAProxy unit", component="edge", entries=[Absent(wanted)])
    files = place(
        name="Configure the request rate limit",
        component="edge",
        entries=[
            File("request-rate.cfg.j2", conf, check="haproxy -c -q -f {path}"),
            File("request-rate.service.j2", unit_file),
        ],
        values={"sites": sites},
    )
    unit(name="Start the request rate limit", unit=RATE_UNIT, restart_on=[files])


def _remove(what: str, service: str, paths: list[str]) -> None:
    systemd.service(name=f"Disable {what}", service=service, running=False, enabled=False)
    place(name=f"Remove {what}", component="edge", entries=[Absent(path) for path in paths])


if belongs_here("edge"):
    edge()
