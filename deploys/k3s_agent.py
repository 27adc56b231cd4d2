"""K3s agent: an additional machine of the cluster, for more pods. It has no API, no datastore and no data.

pyinfra inventory/production.py deploys/k3s_agent.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from minipc.config import Settings
from minipc.core.ports import MONITORING, POD_WIREGUARD
from minipc.pyinfra_ext.deploying import (
    artifact,
    belongs_here,
    cluster_is_encrypted,
    cluster_nodes,
    cluster_server,
    config,
    node_interface,
    not_exercised,
    secrets,
)
from minipc.pyinfra_ext.facts.k3s import AS_THE_NODE, PROGRAM, InUserNamespace
from minipc.pyinfra_ext.operations import Absent, Directory, File, Placed, SecretFile, install, place, push, unit
from minipc.pyinfra_ext.operations.k3s import PACKAGES, images_imported, node_ready, program_path
from minipc.secrets.catalogue import K3S_AGENT_TOKEN, registry_password

UNIT = "k3s-agent.service"
EXPORTER = "prometheus-node-exporter.service"
ETC = "/etc/rancher/k3s"
AGENT = "/var/lib/rancher/k3s/agent/etc"


@deploy("k3s_agent")
def k3s_agent() -> None:
    settings = config()
    if settings.services.runtime != "k3s":
        not_exercised("k3s_agent", "services run under podman, without K3s", "k3s_agent")
        return
    found = artifact("k3s", component="k3s_agent")
    if found is None:
        return

    # install
    install(name="Install packages for the K3s agent", packages=[*PACKAGES, "prometheus-node-exporter"])
    path = program_path(found)
    binary = push(name="Copy the K3s binary", artifact=found, path=path)
    files.link(name="Link the current K3s version", path=PROGRAM, target=path)

    # configure
    kernel = place(
        name="Configure kernel modules for K3s",
        component="k3s_agent",
        entries=[File("k3s/modules.conf", "/etc/modules-load.d/minipc-k3s.conf")],
    )
    configured = configuration(settings)
    exporter = node_exporter(settings)

    # activate
    unit(name="Load kernel modules for K3s", unit="systemd-modules-load.service", restart_on=[kernel])
    unit(name="Start the K3s agent", unit=UNIT, restart_on=[binary, configured])
    unit(name="Start the node exporter", unit=EXPORTER, restart_on=[exporter])
    node_ready(
        name="Wait until the node is ready", node=settings.host.name, program=path, unit=UNIT, kubectl=AS_THE_NODE
    )
    images_imported(name="Import images that containerd has lost")


def configuration(settings: Settings) -> Placed:
    """Configure agent, kubelet and containerd. In the lab, also the overrides for a shared kernel."""
    registries = {registry.name: registry_password(registry.name) for registry in settings.k3s.registries}
    passwords = secrets({"token": K3S_AGENT_TOKEN, **registries})
    for_a_shared_kernel = [
        File("k3s/lab-config.yaml", f"{ETC}/config.yaml.d/90-lab.yaml"),
        File("k3s/lab-kubelet.conf", f"{AGENT}/kubelet.conf.d/90-lab.conf"),
        File("k3s/lab-containerd.toml", f"{AGENT}/containerd/config-v3.toml.d/90-lab.toml"),
    ]
    encrypted = cluster_is_encrypted()
    if cluster_nodes() and not encrypted:
        not_exercised("encryption between the machines of the cluster", "the kernel has no WireGuard", "k3s_agent")
    flannel = f"{ETC}/flannel.json"
    return place(
        name="Configure the K3s agent",
        component="k3s_agent",
        entries=[
            Directory(ETC, mode="700"),
            File("config.yaml.j2", f"{ETC}/config.yaml", mode="600"),
            File("k3s/flannel.json.j2", flannel) if encrypted else Absent(flannel),
            File("k3s/kubelet.conf", f"{AGENT}/kubelet.conf.d/50-minipc.conf", mode="600"),
            SecretFile("", f"{ETC}/token", content=f"{passwords['token'].reveal()}\n".encode()),
            SecretFile("k3s/registries.yaml.j2", f"{ETC}/registries.yaml")
            if registries
            else Absent(f"{ETC}/registries.yaml"),
            File("k3s-agent.service", f"/etc/systemd/system/{UNIT}"),
            *(for_a_shared_kernel if settings.where.shares_kernel and host.get_fact(InUserNamespace) else []),
        ],
        values={
            "k3s": settings.k3s,
            "node_name": settings.host.name,
            "node_interface": node_interface(),
            "server": cluster_server(),
            "registries": settings.k3s.registries,
            "passwords": passwords,
            "encrypted": encrypted,
            "pod_port": POD_WIREGUARD,
        },
    )


def node_exporter(settings: Settings) -> Placed:
    """Configure the node exporter. The firewall admits only the server's Prometheus."""
    return place(
        name="Configure the node exporter",
        component="k3s_agent",
        entries=[
            Directory("/var/lib/prometheus/node-exporter"),
            File("prometheus/node-exporter.conf.j2", f"/etc/systemd/system/{EXPORTER}.d/minipc.conf"),
        ],
        values={"ports": MONITORING, "listen": settings.k3s.node_ip},
    )


if belongs_here("k3s_agent"):
    k3s_agent()
