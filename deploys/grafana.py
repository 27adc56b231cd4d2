"""Grafana: dashboards for the operator, rendered from the questions and the saved log queries. Operator side only.

pyinfra inventory/production.py deploys/grafana.py
"""

from pyinfra.api import deploy
from pyinfra.operations import server

from minipc.checks import load
from minipc.dashboards import logs_dashboard, questions_dashboard, rendered
from minipc.deploying import artifact, belongs_here, config, secrets
from minipc.logs import saved_queries
from minipc.operations import Content, Directory, File, SecretFile, place, push, unit
from minipc.ports import MONITORING
from minipc.secrets.catalogue import GRAFANA_PASSWORD

ETC = "/etc/grafana"


@deploy("grafana")
def grafana() -> None:
    settings = config()
    found = artifact("grafana", component="grafana")
    if not found:
        return
    passwords = secrets({"admin": GRAFANA_PASSWORD})

    # install
    program = push(name="place the program", artifact=found, path="/usr/local/lib/minipc/grafana", member="grafana-*")
    server.user(
        name="create the account",
        user="grafana",
        system=True,
        home="/var/lib/grafana",
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )

    # configure
    files = place(
        name="configure",
        component="grafana",
        entries=[
            Directory(ETC),
            Directory(f"{ETC}/provisioning"),
            Directory(f"{ETC}/provisioning/datasources"),
            Directory(f"{ETC}/provisioning/dashboards"),
            File("grafana.ini.j2", f"{ETC}/grafana.ini"),
            SecretFile("", f"{ETC}/admin_password", owner="grafana", content=passwords["admin"].reveal().encode()),
            File("datasources.yaml.j2", f"{ETC}/provisioning/datasources/minipc.yaml"),
            File("dashboards.yaml", f"{ETC}/provisioning/dashboards/minipc.yaml"),
            File("grafana.service.j2", "/etc/systemd/system/grafana.service"),
        ],
        values={
            "grafana": settings.grafana,
            "prometheus_port": MONITORING["prometheus"],
            "loki_url": settings.syslog_ng.loki_url or f"http://127.0.0.1:{settings.loki.port}",
        },
    )
    # Grafana looks for changed dashboards itself.
    place(
        name="place the dashboards",
        component="grafana",
        entries=[
            Directory(f"{ETC}/dashboards"),
            Content(rendered(questions_dashboard(load())), f"{ETC}/dashboards/questions.json"),
            Content(rendered(logs_dashboard(saved_queries().values())), f"{ETC}/dashboards/logs.json"),
        ],
    )

    # activate
    unit(name="activate", unit="grafana.service", restart_on=[program, files])


if belongs_here("grafana"):
    grafana()
