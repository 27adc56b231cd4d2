"""Timers of the backups, the restore drill and the heartbeat. The programs of the backups are in `repositories`.

pyinfra inventory/production.py deploys/backups.py
"""

import json
from typing import Any

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.facts.hardware import Cpus

from minipc.config import Settings
from minipc.config.offsite import storage_name
from minipc.config.service import Service
from minipc.config.services import DATA_CLASSES, volumes_of
from minipc.pyinfra_ext.deploying import belongs_here, config, secrets, service_image
from minipc.pyinfra_ext.facts.podman import loaded
from minipc.pyinfra_ext.guards import refuse_another_database
from minipc.pyinfra_ext.operations import Absent, Content, Directory, File, SecretFile, place, programs, units
from minipc.pyinfra_ext.operations.backups import first_backup_taken, stanza_present, state_restored
from minipc.services.environment import MIGRATE, needed_secrets, secret_data
from minipc.services.manifests import DRILL as DRILL_PART
from minipc.services.manifests import Image, PodmanHost, for_podman, podman_name
from minipc.services.queues import FOLDER as QUEUES
from minipc_machine import schema
from minipc_machine.drill import MANIFESTS, DataClass, DrillSettings, Query, Table
from minipc_machine.drill import Service as DrillService

DRILL = "/usr/local/lib/minipc/drill"
DRILLS = "/var/lib/minipc/drills"
SYSTEMD = "/etc/systemd/system"


@deploy("backups")
def backups() -> None:
    settings = config()
    refuse_another_database()
    repos = [1, 2] if settings.has_offsite else [1]

    # configure
    timers = {
        "minipc-backup-full": ("Full backup", settings.backups.full_calendar, "minipc-backup@full.service"),
        "minipc-backup-diff": ("Differential backup", settings.backups.diff_calendar, "minipc-backup@diff.service"),
        "minipc-backup-files": (
            "Backup of configuration and state",
            settings.backups.files_calendar,
            "minipc-backup@files.service",
        ),
        "minipc-backup-again": ("Repeat an interrupted full backup", "hourly", "minipc-backup@unfinished.service"),
        "minipc-drill": ("Restore drill", settings.backups.drill_calendar, "minipc-drill@next.service"),
    }
    programs(
        name="Install the restore drill",
        component="backups",
        programs=["drill"],
        entries=[
            Directory(DRILLS),
            Content(schema.dump(_drill_settings()).encode(), "/etc/minipc/backups/drill.json"),
            Directory(str(MANIFESTS), mode="700"),
            *_migrations(settings),
            # Left by an earlier version; programs that imported it are replaced by now.
            Absent("/usr/local/lib/minipc/common.py"),
        ],
    )
    if settings.has_offsite and settings.postgres.from_backup != "refuse":
        state_restored(name="Restore the results of past drills", paths=[DRILLS], then=f"{DRILL} publish")
    schedule = place(
        name="Configure the units of backups, drill and heartbeat",
        component="backups",
        entries=[
            File("minipc-failed@.service.j2", f"{SYSTEMD}/minipc-failed@.service"),
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
    volumes = [each.tag for each in volumes_of(settings.services.declared)]
    storage = storage_name(settings)
    files = ["restic", *volumes] if settings.has_offsite else []
    stanza_present(name="Create the stanza and check that WAL arrives", repos=repos, storage=storage)
    scheduled = [f"{name}.timer" for name in [*timers, "minipc-heartbeat"]]
    units(name="Enable the timers of backups, drill and heartbeat", units=scheduled, restart_on=[schedule])
    first_backup_taken(name="Take a first backup", repos=repos, files=files, storage=storage)


def _drill_settings() -> DrillSettings:
    settings = config()
    return DrillSettings(
        bin="/usr/lib/postgresql/17/bin",
        address=settings.host.service_address,
        port=settings.backups.drill_port,
        margin_mb=settings.backups.drill_margin_mb,
        runtime="k3s" if settings.services.runtime == "k3s" else "podman",
        services=[_drill_service(each) for each in settings.services.declared],
    )


def _drill_service(service: Service) -> DrillService:
    classes = [
        DataClass(name, [Table(table, column) for table, column in service.data_classes[name].items()])
        for name in DATA_CLASSES
        if service.data_classes.get(name)
    ]
    return DrillService(
        name=service.name,
        database=service.postgres.database if service.postgres else None,
        owner=service.postgres.roles[0] if service.postgres else "",
        migration_limit_s=service.migrate.time_limit_s if service.migrate else None,
        queries=[Query(each.name, each.sql, each.expect) for each in service.drill],
        classes=classes,
        queue=f"{QUEUES}/{service.name}" if service.redis and service.redis.kind == "queue" else "",
    )


def _migrations(settings: Settings) -> list[File]:
    """Return what runs the migrations of each service in a drill under podman. In K3s, the release has left it."""
    if settings.services.runtime == "k3s":
        return []
    found = []
    for service in settings.services.declared:
        image = service_image(service)
        if service.migrate and service.postgres and image:
            text = _migration(settings, service, loaded(image))
            found.append(SecretFile("", f"{MANIFESTS}/{service.name}.yaml", content=text.encode()))
    return found


def _migration(settings: Settings, service: Service, image: Image) -> str:
    """Return the objects of a service's migration with the drill's Secret, which leads to the scratch server."""
    values = {key: secret.reveal() for key, secret in secrets(needed_secrets(service)).items()}
    data = secret_data(service, settings, values, "drill")
    host = PodmanHost(settings.host.service_address)
    objects = for_podman(service, settings.environment, image, MIGRATE, host, data)
    text = "\n---\n".join(json.dumps(each, indent=1) for each in objects)
    # Its Secret, pod and volumes are not those of a release, which has the same names on the whole machine.
    return text.replace(podman_name(service, MIGRATE), podman_name(service, DRILL_PART)) + "\n"


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
