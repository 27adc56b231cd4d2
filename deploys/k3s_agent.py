"""K3s on a further machine of a cluster: more room for pods. No API, no datastore, no data.

pyinfra inventory/production.py deploys/k3s_agent.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from minipc.config import Settings
from minipc.deploying import artifact, belongs_here, cluster_server, config, node_interface, not_exercised, secrets
from minipc.facts.k3s import AS_THE_NODE, PROGRAM, InUserNamespace
from minipc.operations import Absent, Directory, File, Placed, SecretFile, install, place, push, unit
from minipc.operations.k3s import PACKAGES, node_ready, program_path
from minipc.ports import MONITORING
from minipc.secrets.catalogue import K3S_AGENT_TOKEN, registry_password

UNIT = "k3s-agent.service"
EXPORTER = "prometheus-node-exporter.service"
ETC = "/etc/rancher/k3s"
AGENT = "/var/lib/rancher/k3s/agent/etc"


@deploy("k3s_agent")
def k3s_agent() -> None:
    settings = config()
    if settings.workload.runtime != "k3s":
        not_exercised("k3s_agent", f"the service runs as a {settings.workload.runtime}", "k3s_agent")
        return
    found = artifact("k3s", component="k3s_agent")
    if found is None:
        return

    # install
    install(name="install packages", packages=[*PACKAGES, "prometheus-node-exporter"])
    path = program_path(found)
    binary = push(name="place the program", artifact=found, path=path)
    files.link(name="use this version", path=PROGRAM, target=path)

    # configure
    kernel = place(
        name="configure kernel modules",
        component="k3s_agent",
        entries=[File("modules.conf", "/etc/modules-load.d/minipc-k3s.conf")],
    )
    configured = configuration(settings)
    exporter = measurements(settings)

    # activate
    unit(name="load kernel modules", unit="systemd-modules-load.service", restart_on=[kernel])
    unit(name="activate", unit=UNIT, restart_on=[binary, configured])
    unit(name="activate the exporter", unit=EXPORTER, restart_on=[exporter])
    node_ready(
        name="wait until the node is ready", node=settings.host.name, program=path, unit=UNIT, kubectl=AS_THE_NODE
    )


def configuration(settings: Settings) -> Placed:
    """Of the agent, the kubelet and containerd; with what a kernel shared with the controller needs, in the lab."""
    registries = {registry.name: registry_password(registry.name) for registry in settings.k3s.registries}
    passwords = secrets({"token": K3S_AGENT_TOKEN, **registries})
    lab = [
        File("lab-config.yaml", f"{ETC}/config.yaml.d/90-lab.yaml"),
        File("lab-kubelet.conf", f"{AGENT}/kubelet.conf.d/90-lab.conf"),
        File("lab-containerd.toml", f"{AGENT}/containerd/config-v3.toml.d/90-lab.toml"),
    ]
    in_lab = settings.environment == "lab" and host.get_fact(InUserNamespace)
    return place(
        name="configure",
        component="k3s_agent",
        entries=[
            Directory(ETC, mode="700"),
            File("config.yaml.j2", f"{ETC}/config.yaml", mode="600"),
            File("kubelet.conf", f"{AGENT}/kubelet.conf.d/50-minipc.conf", mode="600"),
            SecretFile("", f"{ETC}/token", content=f"{passwords['token'].reveal()}\n".encode()),
            SecretFile("registries.yaml.j2", f"{ETC}/registries.yaml")
            if registries
            else Absent(f"{ETC}/registries.yaml"),
            File("k3s-agent.service", f"/etc/systemd/system/{UNIT}"),
            *(lab if in_lab else []),
        ],
        values={
            "k3s": settings.k3s,
            "node_name": settings.host.name,
            "node_interface": node_interface(),
            "server": cluster_server(),
            "registries": settings.k3s.registries,
            "passwords": passwords,
        },
    )


def measurements(settings: Settings) -> Placed:
    """The exporter that the server's Prometheus asks; the firewall lets nobody else."""
    return place(
        name="configure what is measured",
        component="k3s_agent",
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            File("node-exporter.conf.j2", f"/etc/systemd/system/{EXPORTER}.d/minipc.conf"),
        ],
        values={"ports": MONITORING, "listen": settings.k3s.node_ip},
    )


if belongs_here("k3s_agent"):
    k3s_agent()
