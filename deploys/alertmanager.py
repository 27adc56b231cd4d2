"""Alertmanager: who hears of an alert, grouped, without the ones that another explains. On loopback only.

pyinfra inventory/production.py deploys/alertmanager.py
"""

from pyinfra.api import deploy

from minipc import keys
from minipc.addresses import bracketed
from minipc.checks import load
from minipc.checks.pace import paced
from minipc.checks.rules import inhibitions
from minipc.config import Settings
from minipc.deploying import belongs_here, config, not_exercised, offsite_address, secrets
from minipc.operations import Absent, Content, Directory, File, SecretFile, install, place, unit
from minipc.ports import MONITORING
from minipc.secrets import Secret
from minipc.secrets.catalogue import ALERTMANAGER_PASSWORD, SLACK_URL, TLS_KEY, WATCHDOG_URL, WATCHER_PING_TOKEN
from minipc.secrets.hashing import hashed

ETC = "/etc/prometheus/minipc"
USER = "operator"
PASSWORD_FILE = f"{ETC}/alertmanager.password"


@deploy("alertmanager")
def alertmanager() -> None:
    settings = config()
    told = {"slack": settings.alertmanager.slack, "watchdog": settings.alertmanager.watchdog}
    password = secrets({"password": ALERTMANAGER_PASSWORD})["password"]
    urls = secrets({key: name for key, name in {"slack": SLACK_URL}.items() if told[key]})
    authority: str | None = None
    if told["watchdog"]:
        urls["watchdog"], authority = _who_waits(settings)
    if not told["slack"]:
        not_exercised("alerts reach Slack", "alertmanager_slack is False", "alertmanager")
    values = {
        "alertmanager": settings.alertmanager,
        "prometheus": settings.prometheus,
        "host": settings.host,
        "inhibitions": inhibitions(load()),
        "etc": ETC,
        "own_watcher": authority is not None,
        "port": MONITORING["alertmanager"],
        "user": USER,
        "hash": hashed(password, "alertmanager"),
        "paced": lambda duration: paced(f"for: {duration}", settings.prometheus.pace).removeprefix("for: "),
    }

    # install
    install(name="install packages", packages=["prometheus-alertmanager"])

    # configure
    files = place(
        name="configure",
        component="alertmanager",
        entries=[
            Directory(ETC),
            File("slack.tmpl", f"{ETC}/slack.tmpl"),
            # Read anew for each request: by Alertmanager, Prometheus, amtool.
            SecretFile("web.yml.j2", f"{ETC}/alertmanager-web.yml", owner="prometheus"),
            SecretFile("", PASSWORD_FILE, owner="prometheus", content=password.reveal().encode()),
            File("amtool.yml.j2", f"{ETC}/amtool.yml", values={"password_file": PASSWORD_FILE}),
            # Read anew for each message.
            *(
                SecretFile("", f"{ETC}/{key}_url", owner="prometheus", content=url.reveal().encode())
                for key, url in urls.items()
            ),
            *(Absent(f"{ETC}/{key}_url") for key in told if key not in urls),
            Content(authority.encode(), f"{ETC}/watcher.crt") if authority else Absent(f"{ETC}/watcher.crt"),
            File("alertmanager.yml.j2", f"{ETC}/alertmanager.yml", check="amtool check-config {path}"),
        ],
        values=values,
    )
    hardening = place(
        name="configure the unit",
        component="alertmanager",
        entries=[File("override.conf.j2", "/etc/systemd/system/prometheus-alertmanager.service.d/minipc.conf")],
        values=values,
    )

    # activate
    unit(name="activate", unit="prometheus-alertmanager.service", restart_on=[hardening], reload_on=[files])


def _who_waits(settings: Settings) -> tuple[Secret, str | None]:
    """The address that is pinged: one of the operator's choice, else the watcher's; and the latter's certificate."""
    given = secrets({"url": WATCHDOG_URL}, optional=["url"])
    address = offsite_address()
    if "url" in given or address is None:
        return secrets({"url": WATCHDOG_URL})["url"], None
    found = secrets({"token": WATCHER_PING_TOKEN, "tls": TLS_KEY})
    url = f"https://{bracketed(address)}:{settings.watcher.ping_port}/ping/{found['token'].reveal()}"
    return Secret(WATCHDOG_URL, url), keys.certificate(found["tls"], address)


if belongs_here("alertmanager"):
    alertmanager()
