"""Volumes of the services: a folder for each. A rebuild restores them before the ingress opens.

pyinfra inventory/production.py deploys/volumes.py
"""

from pyinfra.api import deploy

from minipc.config.offsite import NONE as NO_OFFSITE
from minipc.config.services import volumes_of
from minipc.pyinfra_ext.deploying import belongs_here, config, not_exercised
from minipc.pyinfra_ext.operations import Directory, File, programs, unit
from minipc.pyinfra_ext.operations.volumes import folders_present, volumes_restored


@deploy("volumes")
def volumes() -> None:
    settings = config()
    found = volumes_of(settings.services.declared)
    if not settings.has_offsite:
        for each in found:
            not_exercised(f"backup of the volume {each.key}", NO_OFFSITE, "volumes")

    # configure
    folders_present(name="Create the folders of the volumes", volumes=found)
    files = programs(
        name="Configure the volumes",
        component="volumes",
        programs=["restore-volumes", "measure-volumes"],
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            File("minipc-volumes.service", "/etc/systemd/system/minipc-volumes.service"),
            File("minipc-volumes.timer", "/etc/systemd/system/minipc-volumes.timer"),
        ],
    )
    if settings.has_offsite and settings.postgres.from_backup != "refuse":
        volumes_restored(name="Restore the volumes", volumes=found)

    # activate
    unit(name="Enable the timer that measures the volumes", unit="minipc-volumes.timer", restart_on=[files])


if belongs_here("volumes"):
    volumes()
