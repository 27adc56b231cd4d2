"""When backups are taken, by systemd timers: pgBackRest for the database, restic for configuration and state.

pyinfra inventory/production.py deploys/backups.py
"""

import json
from typing import Any

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.facts.hardware import Cpus

from minipc.config import Settings
from minipc.deploying import belongs_here, config
from minipc.guards import refuse_another_database
from minipc.operations import Content, Directory, File, place, units
from minipc.operations.backups import first_backup_taken, stanza_present, state_restored

DRILL = "/usr/local/lib/minipc/drill"
DRILLS = "/var/lib/minipc/drills"
SYSTEMD = "/etc/systemd/system"


@deploy("backups")
def backups() -> None:
    settings = config()
    refuse_another_database()
    repos = [1, 2] if settings.backups.offsite else [1]

    # configure
    timers = {
        "minipc-backup-full": ("Full backup", settings.backups.full_calendar, "minipc-backup@full.service"),
        "minipc-backup-diff": ("Differential backup", settings.backups.diff_calendar, "minipc-backup@diff.service"),
        "minipc-backup-files": (
            "Backup of configuration and state",
            settings.backups.files_calendar,
            "minipc-backup@files.service",
        ),
        "minipc-drill": ("Restore drill", settings.backups.drill_calendar, "minipc-drill@next.service"),
    }
    place(
        name="place the drill",
        component="backups",
        entries=[
            Directory(DRILLS),
            Content(json.dumps(_drill_settings(), indent=1).encode() + b"\n", "/etc/minipc/backups/drill.json"),
            File("drill.py", DRILL, mode="755"),
        ],
    )
    if settings.backups.offsite and settings.postgres.from_backup != "refuse":
        state_restored(name="have the results of past drills again", paths=[DRILLS], then=f"{DRILL} publish")
    schedule = place(
        name="configure the units",
        component="backups",
        entries=[
            File("minipc-failed@.service", f"{SYSTEMD}/minipc-failed@.service"),
            File("minipc-backup@.service.j2", f"{SYSTEMD}/minipc-backup@.service"),
            File("minipc-drill@.service.j2", f"{SYSTEMD}/minipc-drill@.service"),
            File("minipc-heartbeat.service.j2", f"{SYSTEMD}/minipc-heartbeat.service"),
            *(
                File("timer.j2", f"{SYSTEMD}/{name}.timer", values=_timer(*timer, settings.backups.random_delay_s))
                for name, timer in timers.items()
            ),
            File(
                "timer.j2",
                f"{SYSTEMD}/minipc-heartbeat.timer",
                values=_timer("Heartbeat row in the database", "minutely", "minipc-heartbeat.service", 0),
            ),
        ],
        values={"postgres": settings.postgres, "cpus": host.get_fact(Cpus)},
    )

    # activate
    stanza_present(name="have the stanza, and WAL arriving", repos=repos)
    scheduled = [f"{name}.timer" for name in [*timers, "minipc-heartbeat"]]
    units(name="schedule backups, drill and heartbeat", units=scheduled, restart_on=[schedule])
    first_backup_taken(name="have a first backup", repos=repos, files=bool(settings.backups.offsite))


def _drill_settings() -> dict[str, Any]:
    """What the drill needs to know; no secrets."""
    settings = config()
    # Pods come to the service's address.
    address = settings.host.service_address if settings.workload.runtime == "k3s" else "127.0.0.1"
    return {
        "bin": "/usr/lib/postgresql/17/bin",
        "address": address,
        "port": settings.backups.drill_port,
        "margin_mb": settings.backups.drill_margin_mb,
        "queries": [query.model_dump() for query in settings.backups.drill_queries],
        "classes": [data_class.model_dump() for data_class in settings.backups.data_classes],
        "migrate": _migration(settings, {"DATABASE_HOST": address, "DATABASE_PORT": str(settings.backups.drill_port)}),
    }


def _migration(settings: Settings, database: dict[str, str]) -> dict[str, Any]:
    """The service's migrations, aimed at the scratch cluster. In K3s their code is in an image: a job does them."""
    if settings.workload.runtime == "k3s":
        return {"job": "migrate", "environment": database}
    return {
        "user": "workload",
        "argv": ["/usr/bin/python3", "-m", "minipc_workload", "migrate"],
        "environment_file": "/etc/workload/env",
        "environment": {"PYTHONPATH": "/opt/workload", "PYTHONDONTWRITEBYTECODE": "1", **database},
    }


def _timer(description: str, calendar: str, unit: str, delay_s: int) -> dict[str, Any]:
    return {
        "description": description,
        "calendar": calendar,
        "unit": unit,
        "delay_s": delay_s,
        "persistent": calendar != "minutely",
    }


if belongs_here("backups"):
    backups()
