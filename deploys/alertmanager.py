"""Alertmanager: groups alerts, inhibits those that another explains, and notifies. It listens on loopback only.

It runs on the mini PC and on the off-site host, with the same channels, so that each reports what the other can't.

pyinfra inventory/production.py deploys/alertmanager.py
"""

from urllib.parse import urlencode

from pyinfra.api import deploy

from minipc.checks import load
from minipc.checks.rules import inhibitions
from minipc.checks.time_scale import scaled
from minipc.config import Settings
from minipc.config.channels import AnyChannel
from minipc.core.ports import MONITORING
from minipc.pyinfra_ext.deploying import belongs_here, config, not_exercised, role, secrets
from minipc.pyinfra_ext.operations import Absent, Directory, File, SecretFile, install, place, unit
from minipc.pyinfra_ext.operations.files import Entry
from minipc.secrets import Secret
from minipc.secrets.catalogue import (
    ALERTMANAGER_PASSWORD,
    WATCHDOG_URL,
    WATCHER_ALERTMANAGER_PASSWORD,
    WATCHER_ALIVE_URL,
    channel_secret,
)
from minipc.secrets.hashing import hashed

# Files of earlier versions.
REMOVED = ("slack.tmpl",)
ETC = "/etc/prometheus/minipc"
USER = "operator"
NTFY = {
    "tpl": "yes",
    "t": "{{.status}}: {{.commonLabels.priority}} {{.commonLabels.layer}}",
    "m": "{{range .alerts}}{{.labels.alertname}}{{with .annotations.each}} ({{.}}){{end}}: {{.annotations.meaning}} "
    "Next: {{.annotations.next}}\n{{end}}",
}
PASSWORD_FILE = f"{ETC}/alertmanager.password"


@deploy("alertmanager")
def alertmanager() -> None:
    settings, offsite = config(), role() == "offsite"
    channels = settings.alertmanager.channels
    own = WATCHER_ALERTMANAGER_PASSWORD if offsite else ALERTMANAGER_PASSWORD
    password = secrets({"password": own})["password"]
    watchdog = _watchdog(settings, offsite)
    if not channels:
        not_exercised("alerts reach a person", "alertmanager_channels is empty", "alertmanager")
    values = {
        "alertmanager": settings.alertmanager,
        "channels": channels,
        "prometheus": settings.prometheus,
        "host": settings.host,
        "inhibitions": [] if offsite else inhibitions(load(settings.services.declared)),
        "etc": ETC,
        "watchdog": watchdog is not None,
        "port": MONITORING["alertmanager"],
        "user": USER,
        "hash": hashed(password, "alertmanager"),
        "paced": lambda duration: scaled(f"for: {duration}", settings.prometheus.pace).removeprefix("for: "),
    }

    # install
    install(name="Install Alertmanager", packages=["prometheus-alertmanager"])

    # configure
    files = place(
        name="Configure Alertmanager",
        component="alertmanager",
        entries=[
            Directory(ETC),
            File("messages.tmpl", f"{ETC}/messages.tmpl"),
            # Alertmanager, Prometheus and amtool read these files for each request.
            SecretFile("web.yml.j2", f"{ETC}/alertmanager-web.yml", owner="prometheus"),
            _readable("alertmanager.password", password.reveal()),
            File("amtool.yml.j2", f"{ETC}/amtool.yml", values={"password_file": PASSWORD_FILE}),
            _readable("watchdog_url", watchdog.reveal()) if watchdog else Absent(f"{ETC}/watchdog_url"),
            *(entry for channel in channels for entry in _secret_files(channel)),
            *(Absent(f"{ETC}/{name}") for name in REMOVED),
            File("alertmanager.yml.j2", f"{ETC}/alertmanager.yml", check="amtool check-config {path}"),
        ],
        values=values,
    )
    hardening = place(
        name="Configure the Alertmanager unit",
        component="alertmanager",
        entries=[File("override.conf.j2", "/etc/systemd/system/prometheus-alertmanager.service.d/minipc.conf")],
        values=values,
    )

    # activate
    unit(name="Start Alertmanager", unit="prometheus-alertmanager.service", restart_on=[hardening], reload_on=[files])


def _secret_files(channel: AnyChannel) -> list[Entry]:
    """Return the files with the secrets of a channel; Alertmanager reads them for each message."""
    found = secrets({part: channel_secret(channel.name, part) for part in channel.secrets})
    values = {part: secret.reveal() for part, secret in found.items()}
    if channel.kind == "ntfy":
        # The server itself turns Alertmanager's JSON into a text: https://docs.ntfy.sh/publish/#message-templating
        values["url"] += ("&" if "?" in values["url"] else "?") + urlencode(NTFY)
    return [_readable(f"{channel.name}_{part}", value) for part, value in values.items()]


def _readable(name: str, value: str) -> Entry:
    """Return a file with a secret that only Alertmanager's and Prometheus' account reads."""
    return SecretFile("", f"{ETC}/{name}", owner="prometheus", content=value.encode())


def _watchdog(settings: Settings, offsite: bool) -> Secret | None:
    """Return the URL that is requested while alerts work; None: nobody waits for it but the off-site host."""
    if offsite:
        return secrets({"url": WATCHER_ALIVE_URL}, ["url"]).get("url")
    if not settings.alertmanager.watchdog:
        return None
    return secrets({"url": WATCHDOG_URL}, ["url"] if settings.backups.offsite else []).get("url")


if belongs_here("alertmanager"):
    alertmanager()
