"""Grafana: dashboards rendered from the checks and the saved log queries. Reached from the operator side only.

pyinfra inventory/production.py deploys/grafana.py
"""

from pyinfra.api import deploy

from minipc.checks import load
from minipc.core.ports import MONITORING
from minipc.dashboards import logs_dashboard, questions_dashboard, rendered, service_dashboard
from minipc.logs import saved_queries
from minipc.pyinfra_ext.deploying import artifact, belongs_here, config, secrets
from minipc.pyinfra_ext.operations import Content, Directory, File, SecretFile, place, push, unit
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
    program = push(name="Copy Grafana", artifact=found, path="/usr/local/lib/minipc/grafana", member="grafana-*")

    # configure
    files = place(
        name="Configure Grafana",
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
    services = settings.services.declared
    # Grafana reloads changed dashboards by itself.
    place(
        name="Copy the Grafana dashboards",
        component="grafana",
        entries=[
            Directory(f"{ETC}/dashboards"),
            Content(rendered(questions_dashboard(load(services))), f"{ETC}/dashboards/questions.json"),
            Content(rendered(service_dashboard()), f"{ETC}/dashboards/service.json"),
            Content(rendered(logs_dashboard(saved_queries(services).values())), f"{ETC}/dashboards/logs.json"),
        ],
    )

    # activate
    unit(name="Start Grafana", unit="grafana.service", restart_on=[program, files])


if belongs_here("grafana"):
    grafana()
