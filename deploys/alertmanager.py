"""Alertmanager: who hears of an alert, grouped, without the ones that another explains. On loopback only.

pyinfra inventory/production.py deploys/alertmanager.py
"""

from pyinfra.api import deploy

from minipc.checks import load
from minipc.checks.pace import paced
from minipc.checks.rules import inhibitions
from minipc.guards import config, not_exercised, secrets
from minipc.operations import Absent, Directory, File, SecretFile, install, place, unit
from minipc.secrets.catalogue import SLACK_URL, WATCHDOG_URL

ETC = "/etc/prometheus/minipc"
PORT = 9093


@deploy("alertmanager")
def alertmanager() -> None:
    settings = config()
    told = {"slack": settings.alertmanager.slack, "watchdog": settings.alertmanager.watchdog}
    names = {"slack": SLACK_URL, "watchdog": WATCHDOG_URL}
    urls = secrets({key: name for key, name in names.items() if told[key]})
    if not told["slack"]:
        not_exercised("alerts reach Slack", "alertmanager_slack is False", "alertmanager")
    values = {
        "alertmanager": settings.alertmanager,
        "prometheus": settings.prometheus,
        "host": settings.host,
        "inhibitions": inhibitions(load()),
        "etc": ETC,
        "port": PORT,
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
            # Read anew for each message.
            *(
                SecretFile("", f"{ETC}/{key}_url", owner="prometheus", content=url.reveal().encode())
                for key, url in urls.items()
            ),
            *(Absent(f"{ETC}/{key}_url") for key in told if key not in urls),
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


alertmanager()
