"""Loki: logs, searchable. One process with files on disk, on loopback; kept by age and within a bound of disk space.

pyinfra inventory/production.py deploys/loki.py
"""

import json

from pyinfra.api import deploy
from pyinfra.operations import server

from minipc.deploying import artifact, belongs_here, config
from minipc.operations import Content, Directory, File, place, push, unit

ETC = "/etc/loki"
DATA = "/var/lib/loki"
BIN = "/usr/local/lib/minipc"
SYSTEMD = "/etc/systemd/system"


@deploy("loki")
def loki() -> None:
    settings = config()
    found = artifact("loki", component="loki")
    if not found:
        return

    # install
    program = push(name="place the program", artifact=found, path=f"{BIN}/loki", member="loki-linux-*")
    server.user(
        name="create the account", user="loki", system=True, home=DATA, ensure_home=False, shell="/usr/sbin/nologin"
    )

    # configure
    target = [{"targets": [f"127.0.0.1:{settings.loki.port}"]}]
    files = place(
        name="configure",
        component="loki",
        entries=[
            Directory(ETC),
            Directory(DATA, owner="loki", mode="700"),
            File("loki.yaml.j2", f"{ETC}/loki.yaml", check=f"{BIN}/loki -verify-config -config.file={{path}}"),
            File("loki.service.j2", f"{SYSTEMD}/loki.service"),
        ],
        values={"loki": settings.loki, "data": DATA},
    )
    bound = place(
        name="configure the bound of its disk space",
        component="loki",
        entries=[
            Content(json.dumps(target).encode() + b"\n", f"{ETC}/target.json"),
            File("bound.py", f"{BIN}/loki-bound", mode="755"),
            File("minipc-loki-bound.service.j2", f"{SYSTEMD}/minipc-loki-bound.service"),
            File("minipc-loki-bound.timer", f"{SYSTEMD}/minipc-loki-bound.timer"),
        ],
        values={"loki": settings.loki},
    )

    # activate
    unit(name="activate", unit="loki.service", restart_on=[program, files])
    unit(name="keep it within its disk space", unit="minipc-loki-bound.timer", restart_on=[bound])


if belongs_here("loki"):
    loki()
