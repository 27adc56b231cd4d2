"""Your services. In K3s: what only the machine may make, ArgoCD deploys the rest. Else podman runs the same images.

pyinfra inventory/production.py deploys/services.py
"""

from collections.abc import Mapping

from pyinfra import host
from pyinfra.api import deploy

from minipc.config import Settings
from minipc.config.service import CronJob, Migration, Process, Service
from minipc.core import yaml_text
from minipc.pyinfra_ext.deploying import artifact, belongs_here, config, not_exercised, secrets, service_image
from minipc.pyinfra_ext.facts.podman import SERVICES, loaded
from minipc.pyinfra_ext.facts.services import DataOfServices
from minipc.pyinfra_ext.operations import (
    Content,
    Directory,
    File,
    Placed,
    SecretFile,
    install,
    place,
    programs,
    unit,
)
from minipc.pyinfra_ext.operations.k3s import (
    image_policies_removed,
    namespaces_removed,
    objects_present,
    service_secrets_present,
)
from minipc.pyinfra_ext.operations.podman import (
    PACKAGES,
    QUADLETS,
    UNITS,
    earlier_units_removed,
    parts_removed,
)
from minipc.services import manifests, namespace
from minipc.services.calendar import calendar_events
from minipc.services.environment import MIGRATE, Purpose, needed_secrets, secret_data, secret_name
from minipc.services.environment import programs as parts_of
from minipc.services.manifests import Image, PodmanHost, podman_name
from minipc.services.ports import metrics_port, network_interface

OBJECTS = "/etc/minipc/k3s/services.yaml"
PURPOSES: tuple[Purpose, ...] = ("run", "migrate", "drill")


@deploy("services")
def services() -> None:
    settings = config()
    # Resolved for all services before anything is changed.
    data = {service.name: _secret_data(service, settings) for service in settings.services.declared}
    name_kept_data(settings)
    earlier_units_removed(name="Remove the units of minipc 0.2")
    if settings.services.runtime == "k3s":
        parts_removed(name="Remove units of services under podman", kept=[])
        in_k3s(settings, data)
    else:
        under_podman(settings, data)


def name_kept_data(settings: Settings) -> None:
    """Name in the report what services have left that are not declared any more."""
    names = {service.name for service in settings.services.declared}
    databases = {each.name for each in settings.postgres.databases}
    for kind, name in host.get_fact(DataOfServices, port=settings.postgres.port):
        if name not in (databases if kind == "database" else names):
            why = f"it is kept and not checked; `minipc service remove {name}` shows and deletes it"
            not_exercised(f"{kind} {name}, which no service file declares", why, "services")


def in_k3s(settings: Settings, data: Mapping[str, Mapping[Purpose, Mapping[str, str]]]) -> None:
    """Make namespaces, limits, network policies, volumes and Secrets. Secrets are never in a file of the machine."""
    if artifact("k3s", component="services") is None:
        return
    declared = settings.services.declared
    found = [each for service in declared for each in namespace.objects(service, settings)]
    placed = place(
        name="Configure the namespaces of the services",
        component="services",
        entries=[
            Directory("/etc/minipc/k3s"),
            Content("---\n".join(map(yaml_text.dump, found)).encode(), OBJECTS, mode="600"),
        ],
    )
    if declared:
        objects_present(name="Create the namespaces of the services", path=OBJECTS, placed=placed)
        service_secrets_present(
            name="Write the services' secrets to the cluster",
            secrets=[
                manifests.secret(service, data[service.name][purpose], secret_name(service, purpose))
                for service in declared
                for purpose in PURPOSES
                if purpose == "run" or service.migrate
            ],
        )
    namespaces_removed(
        name="Remove the namespaces of services that are gone", kept=[service.name for service in declared]
    )
    image_policies_removed(
        name="Remove the image policies of services without a signer",
        kept=[service.name for service in declared if service.image_signer],
    )
    drift = programs(
        name="Install the cluster drift detector",
        component="services",
        programs=["gitops-drift"],
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            File("minipc-gitops-drift.service", "/etc/systemd/system/minipc-gitops-drift.service"),
            File("minipc-gitops-drift.timer", "/etc/systemd/system/minipc-gitops-drift.timer"),
        ],
    )
    unit(name="Enable the cluster drift timer", unit="minipc-gitops-drift.timer", restart_on=[drift])


def under_podman(settings: Settings, data: Mapping[str, Mapping[Purpose, Mapping[str, str]]]) -> None:
    """Run each service's current image. One replica a process; what only a cluster does is not exercised."""
    if settings.services.declared:
        # install
        install(name="Install podman", packages=PACKAGES)
        # configure
        place(
            name="Configure podman",
            component="services",
            entries=[File("containers.conf", "/etc/containers/containers.conf.d/minipc.conf")],
        )
        not_exercised("network policies of services", "they run under podman, without K3s", "services")
    running: list[Service] = []
    for service in settings.services.declared:
        image = service_image(service)
        if image is None:
            why = f"there is no image; `minipc service image {service.name} FILE.tar` adds one"
            not_exercised(f"service {service.name}", why, "services")
            continue
        if service.image_signer:
            why = "podman runs the image that was added on the controller, which has no signature"
            not_exercised(f"signature of the image of {service.name}", why, "services")
        running.append(service)
        _run(settings, service, loaded(image), data[service.name])
    kept = [(service.name, part) for service in running for part in parts_of(service)]
    parts_removed(name="Remove units of services that are gone", kept=kept)


def _run(settings: Settings, service: Service, image: Image, data: Mapping[Purpose, Mapping[str, str]]) -> None:
    """Place the parts of a service and start them: the migration first, and only if it succeeds the rest."""
    network = f"minipc-{service.name}"
    placed = place(
        name=f"Configure the network of {service.name}",
        component="services",
        entries=[
            Directory("/etc/minipc/services", mode="700"),
            Directory(f"{SERVICES}/{service.name}", mode="700"),
            File("service.network.j2", f"{QUADLETS}/{network}.network"),
        ],
        values={"network": network, "interface": network_interface(service.name)},
    )
    # What quadlet generates cannot be enabled: its file says when it starts.
    network_unit = f"{network}-network.service"
    unit(name=f"Create the network of {service.name}", unit=network_unit, restart_on=[placed], enabled=False)
    parts = parts_of(service)
    for part in sorted(parts, key=lambda each: (each != MIGRATE, each)):
        program, name = parts[part], podman_name(service, part)
        port = metrics_port(settings.services.declared, service.name, part) if _has_metrics(service, part) else None
        found = manifests.for_podman(
            service,
            settings.environment,
            image,
            part,
            PodmanHost(settings.host.service_address, port),
            data["migrate" if part == MIGRATE else "run"],
        )
        yaml = f"{SERVICES}/{service.name}/{part}.yaml"
        entries = [SecretFile("", yaml, content="---\n".join(map(yaml_text.dump, found)).encode())]
        if isinstance(program, Process):
            entries.append(File("process.kube.j2", f"{QUADLETS}/{name}.kube"))
        else:
            entries.append(File("once.service.j2", f"{UNITS}/{name}.service"))
        if isinstance(program, CronJob):
            entries.append(File("once.timer.j2", f"{UNITS}/{name}.timer"))
        placed = place(
            name=f"Configure {part} of {service.name}",
            component="services",
            entries=entries,
            values={
                "service": service.name,
                "part": part,
                "unit": name,
                "network": network,
                "yaml": yaml,
                "time_limit_s": program.time_limit_s if isinstance(program, CronJob | Migration) else 0,
                "calendar": calendar_events(program.schedule) if isinstance(program, CronJob) else [],
            },
        )
        _activate(service, part, placed)


def _activate(service: Service, part: str, placed: Placed) -> None:
    name = podman_name(service, part)
    if part == MIGRATE:
        unit(name=f"Migrate the database of {service.name}", unit=f"{name}.service", restart_on=[placed])
    elif part in service.cron:
        unit(name=f"Enable the timer of {part} of {service.name}", unit=f"{name}.timer", restart_on=[placed])
    else:
        unit(name=f"Start {part} of {service.name}", unit=f"{name}.service", restart_on=[placed], enabled=False)


def _has_metrics(service: Service, part: str) -> bool:
    return part in service.processes and service.processes[part].metrics is not None


def _secret_data(service: Service, settings: Settings) -> dict[Purpose, dict[str, str]]:
    """Return the content of the service's Secrets. A declared secret that is not set stops the run here."""
    found = secrets(needed_secrets(service))
    values = {key: secret.reveal() for key, secret in found.items()}
    return {purpose: secret_data(service, settings, values, purpose) for purpose in PURPOSES}


if belongs_here("services"):
    services()
