"""syslog-ng: ships the journal, access log, PostgreSQL log and pod logs to Loki, with a buffer on disk.

pyinfra inventory/production.py deploys/syslog_ng.py
"""

from pyinfra.api import deploy

from minipc.pyinfra_ext.deploying import artifact, belongs_here, config
from minipc.pyinfra_ext.operations import Directory, File, install, place, unit
from minipc.services.environment import programs as programs_of
from minipc.services.manifests import podman_name

STATE = "/var/lib/syslog-ng"
SYSTEMD = "/etc/systemd/system"


@deploy("syslog_ng")
def syslog_ng() -> None:
    settings = config()
    url = settings.syslog_ng.loki_url or f"http://127.0.0.1:{settings.loki.port}"
    if not settings.syslog_ng.loki_url and not artifact("loki", component="syslog_ng"):
        return

    # install
    install(name="Install syslog-ng", packages=["syslog-ng-core", "syslog-ng-mod-http"])

    # configure
    files = place(
        name="Configure syslog-ng",
        component="syslog_ng",
        entries=[
            Directory(STATE, owner="syslog-ng", mode="700"),
            # syslog-ng watches this folder from its start; K3s creates it later, or never.
            Directory("/var/log/pods"),
            File("syslog-ng.conf.j2", "/etc/syslog-ng/syslog-ng.conf", check="syslog-ng --no-caps -s -f {path}"),
            File("override.conf.j2", f"{SYSTEMD}/syslog-ng.service.d/minipc.conf"),
        ],
        values={
            "url": url,
            "buffer_mb": settings.syslog_ng.buffer_mb,
            "state": STATE,
            "reopen_s": 5,
            "for_operator": bool(settings.services.for_operator),
            "namespaces": [service.name for service in settings.services.declared],
            "under_podman": [
                (service.name, part, podman_name(service, part))
                for service in (settings.services.declared if settings.services.runtime == "podman" else ())
                for part in programs_of(service)
            ],
        },
    )

    # activate
    unit(name="Start syslog-ng", unit="syslog-ng.service", restart_on=[files])


if belongs_here("syslog_ng"):
    syslog_ng()
