"""Loki: searchable logs, one process on loopback with files on disk, limited by age and disk space.

pyinfra inventory/production.py deploys/loki.py
"""

import json

from pyinfra.api import deploy

from minipc.pyinfra_ext.deploying import artifact, belongs_here, config
from minipc.pyinfra_ext.operations import Content, Directory, File, place, programs, push, unit

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
    program = push(name="Install Loki", artifact=found, path=f"{BIN}/loki", member="loki-linux-*")

    # configure
    target = [{"targets": [f"127.0.0.1:{settings.loki.port}"]}]
    files = place(
        name="Configure Loki",
        component="loki",
        entries=[
            Directory(ETC),
            Directory(DATA, owner="loki", mode="700"),
            File("loki.yaml.j2", f"{ETC}/loki.yaml", check=f"{BIN}/loki -verify-config -config.file={{path}}"),
            File("loki.service.j2", f"{SYSTEMD}/loki.service"),
        ],
        values={"loki": settings.loki, "data": DATA},
    )
    bound = programs(
        name="Install the limit of Loki's disk space",
        component="loki",
        programs=["loki-bound"],
        entries=[
            Content(json.dumps(target).encode() + b"\n", f"{ETC}/target.json"),
            File("minipc-loki-bound.service.j2", f"{SYSTEMD}/minipc-loki-bound.service"),
            File("minipc-loki-bound.timer", f"{SYSTEMD}/minipc-loki-bound.timer"),
        ],
        values={"loki": settings.loki},
    )

    # activate
    unit(name="Start Loki", unit="loki.service", restart_on=[program, files])
    unit(name="Enable the timer of the disk space limit", unit="minipc-loki-bound.timer", restart_on=[bound])


if belongs_here("loki"):
    loki()
