"""syslog-ng: ships journal, access log, PostgreSQL's log and pods' logs to Loki; what Loki doesn't take waits on disk.

pyinfra inventory/production.py deploys/syslog_ng.py
"""

from pyinfra.api import deploy
from pyinfra.operations import server

from minipc.deploying import artifact, belongs_here, config
from minipc.operations import Directory, File, install, place, unit

STATE = "/var/lib/syslog-ng"
SYSTEMD = "/etc/systemd/system"


@deploy("syslog_ng")
def syslog_ng() -> None:
    settings = config()
    url = settings.syslog_ng.loki_url or f"http://127.0.0.1:{settings.loki.port}"
    if not settings.syslog_ng.loki_url and not artifact("loki", component="syslog_ng"):
        return

    # install
    install(name="install packages", packages=["syslog-ng-core", "syslog-ng-mod-http"])
    server.user(
        name="create the account",
        user="syslog-ng",
        system=True,
        home=STATE,
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )

    # configure
    files = place(
        name="configure",
        component="syslog_ng",
        entries=[
            Directory(STATE, owner="syslog-ng", mode="700"),
            # It looks for logs there from its start on; K3s is there later, if at all.
            Directory("/var/log/pods"),
            File("syslog-ng.conf.j2", "/etc/syslog-ng/syslog-ng.conf", check="syslog-ng --no-caps -s -f {path}"),
            File("override.conf", f"{SYSTEMD}/syslog-ng.service.d/minipc.conf"),
        ],
        values={"url": url, "buffer_mb": settings.syslog_ng.buffer_mb, "state": STATE, "reopen_s": 5},
    )

    # activate
    unit(name="activate", unit="syslog-ng.service", restart_on=[files])


if belongs_here("syslog_ng"):
    syslog_ng()
