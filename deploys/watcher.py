"""The external monitor: asks the public address from outside, waits for the machine's ping, tells by its own channels.

pyinfra --limit offsite inventory/production.py deploys/watcher.py
"""

import json

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import server

from minipc import keys
from minipc.deploying import config, not_exercised, secrets
from minipc.operations import Content, Directory, File, SecretFile, install, place, unit
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
    edge = config().edge
    values = {
        "name": edge.domain,
        "url": settings.url or f"https://{edge.domain}/api/health",
        "address": settings.address,
        # Only a certificate from a real authority can be verified from elsewhere.
        "verify_tls": edge.acme == "production",
        "interval_s": settings.interval_s,
        "timeout_s": settings.timeout_s,
        "failures": settings.failures,
        "repeat_s": settings.repeat_s,
        "ping_port": settings.ping_port,
        "ping_grace_s": settings.ping_grace_s,
        "disks": ["/", "/srv/minipc-offsite"],
        "disk_free_percent": settings.disk_free_percent,
        "copy_status": "/var/lib/minipc-offsite/status.json",
        "copy_age_s": settings.copy_age_s,
        "tls": {"certificate": f"{ETC}/tls.crt", "key": f"{ETC}/tls.key"},
        "state": "/var/lib/minipc-watcher/state.json",
    }
    channels = [{"kind": kind} for kind in settings.channels if kind not in names]
    channels += [
        settings.email.model_dump() | {"kind": kind, "password": found[kind].reveal()}
        if kind == "email" and settings.email
        else {"kind": kind, "url": found[kind].reveal()}
        for kind in names
    ]
    secret = {"channels": channels, "ping_token": found["token"].reveal()}
    secret |= {"alive_url": found["alive"].reveal()} if "alive" in found else {}
    files = place(
        name="configure",
        component="watcher",
        entries=[
            Directory(ETC),
            File("watcher.py", "/usr/local/lib/minipc/watcher", mode="755"),
            Content(json.dumps(values, indent=1).encode() + b"\n", f"{ETC}/settings.json"),
            SecretFile("", f"{ETC}/channels.json", owner=USER, content=json.dumps(secret).encode() + b"\n"),
            Content(keys.certificate(found["tls"], address).encode(), f"{ETC}/tls.crt"),
            SecretFile("", f"{ETC}/tls.key", owner=USER, content=keys.pem(found["tls"]).encode()),
            File("minipc-watcher.service", "/etc/systemd/system/minipc-watcher.service"),
        ],
    )

    # activate
    unit(name="activate", unit="minipc-watcher.service", restart_on=[files])


watcher()
