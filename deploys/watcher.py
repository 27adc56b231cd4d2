"""The external monitor: asks the public address from outside, waits for the machine's ping, tells by its own channels.

pyinfra --limit offsite inventory/production.py deploys/watcher.py
"""

import json
from typing import Any

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import server

from minipc import keys
from minipc.config import Settings
from minipc.config.schema import WatcherSettings
from minipc.deploying import belongs_here, config, not_exercised, secrets
from minipc.operations import Content, Directory, File, SecretFile, install, place, unit
from minipc.secrets import Secret
from minipc.secrets.catalogue import TLS_KEY, WATCHER_ALIVE_URL, WATCHER_CHANNELS, WATCHER_PING_TOKEN

ETC = "/etc/minipc/watcher"
USER = "minipc-watcher"


@deploy("watcher")
def watcher() -> None:
    settings = config().watcher
    names = {kind: WATCHER_CHANNELS[kind] for kind in settings.channels if kind in WATCHER_CHANNELS}
    found = secrets({"token": WATCHER_PING_TOKEN, "tls": TLS_KEY, "alive": WATCHER_ALIVE_URL, **names}, ["alive"])
    if settings.channels == ["journal"]:
        not_exercised("the watcher reaches somebody", "watcher_channels has only the journal", "watcher")
    address = config().offsite.address or host.data.ssh_hostname

    # install
    install(name="install packages", packages=["ca-certificates", "dbus", "python3"])
    server.user(
        name="create the account",
        user=USER,
        system=True,
        home="/var/lib/minipc-watcher",
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )

    # configure
    files = place(
        name="configure",
        component="watcher",
        entries=[
            Directory(ETC),
            File("watcher.py", "/usr/local/lib/minipc/watcher", mode="755"),
            Content(json.dumps(_watched(config()), indent=1).encode() + b"\n", f"{ETC}/settings.json"),
            SecretFile(
                "", f"{ETC}/channels.json", owner=USER, content=json.dumps(_told(settings, found)).encode() + b"\n"
            ),
            Content(keys.certificate(found["tls"], address).encode(), f"{ETC}/tls.crt"),
            SecretFile("", f"{ETC}/tls.key", owner=USER, content=keys.pem(found["tls"]).encode()),
            File("minipc-watcher.service", "/etc/systemd/system/minipc-watcher.service"),
        ],
    )

    # activate
    unit(name="activate", unit="minipc-watcher.service", restart_on=[files])


def _watched(settings: Settings) -> dict[str, Any]:
    """What it asks, how often, and where it takes the ping; no secrets."""
    own, edge = settings.watcher, settings.edge
    return {
        "name": edge.domain,
        "url": own.url or f"https://{edge.domain}/api/health",
        "address": own.address,
        # Only a certificate from a real authority can be verified from elsewhere.
        "verify_tls": edge.acme == "production",
        "interval_s": own.interval_s,
        "timeout_s": own.timeout_s,
        "failures": own.failures,
        "repeat_s": own.repeat_s,
        "ping_port": own.ping_port,
        "ping_grace_s": own.ping_grace_s,
        "disks": ["/", "/srv/minipc-offsite"],
        "disk_free_percent": own.disk_free_percent,
        "copy_status": "/var/lib/minipc-offsite/status.json",
        "copy_age_s": own.copy_age_s,
        "tls": {"certificate": f"{ETC}/tls.crt", "key": f"{ETC}/tls.key"},
        "state": "/var/lib/minipc-watcher/state.json",
    }


def _told(settings: WatcherSettings, found: dict[str, Secret]) -> dict[str, Any]:
    """Who hears of it, with their addresses and passwords; and by which token it knows the ping."""
    names = [kind for kind in settings.channels if kind in found]
    channels = [{"kind": kind} for kind in settings.channels if kind not in names]
    channels += [
        settings.email.model_dump() | {"kind": kind, "password": found[kind].reveal()}
        if kind == "email" and settings.email
        else {"kind": kind, "url": found[kind].reveal()}
        for kind in names
    ]
    secret = {"channels": channels, "ping_token": found["token"].reveal()}
    return secret | ({"alive_url": found["alive"].reveal()} if "alive" in found else {})


if belongs_here("watcher"):
    watcher()
