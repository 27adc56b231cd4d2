"""K3s: runs the services and ArgoCD. It holds no data.

pyinfra inventory/production.py deploys/k3s.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from minipc.artifacts import Artifact
from minipc.config import Settings
from minipc.core.ports import POD_WIREGUARD
from minipc.pyinfra_ext.deploying import (
    artifact,
    belongs_here,
    cluster_is_encrypted,
    cluster_nodes,
    config,
    node_interface,
    not_exercised,
    secrets,
)
from minipc.pyinfra_ext.facts.k3s import PROGRAM, InUserNamespace
from minipc.pyinfra_ext.operations import Absent, Directory, File, Placed, SecretFile, install, place, push, unit
from minipc.pyinfra_ext.operations.k3s import (
    PACKAGES,
    images_imported,
    node_ready,
    program_path,
    saved_before,
    token_present,
)
from minipc.secrets.catalogue import K3S_AGENT_TOKEN, K3S_NODE_PASSWORD, K3S_TOKEN, registry_password

ETC = "/etc/rancher/k3s"
MANIFESTS = "/var/lib/rancher/k3s/server/manifests"
TOKEN, CA = "/etc/minipc/k3s/prometheus.token", "/etc/minipc/k3s/ca.crt"
AGENT = "/var/lib/rancher/k3s/agent/etc"


@deploy("k3s")
def k3s() -> None:
    settings = config()
    if settings.services.runtime != "k3s":
        not_exercised("k3s", "services run under podman, without K3s", "k3s")
        return
    found = artifact("k3s", component="k3s")
    if found is None:
        # Prometheus is configured with these files and does not start if they are missing.
        for path in (TOKEN, CA):
            files.file(name=f"Create {path}", path=path, mode="600")
        return

    # install
    binary = program(settings, found)

    # configure
    kernel = place(
        name="Configure kernel modules for K3s",
        component="k3s",
        entries=[File("modules.conf", "/etc/modules-load.d/minipc-k3s.conf")],
    )
    configured = configuration(settings)
    contents()

    # activate
    unit(name="Load kernel modules for K3s", unit="systemd-modules-load.service", restart_on=[kernel])
    unit(name="Start K3s", unit="k3s.service", restart_on=[binary, configured])
    node_ready(name="Wait until the node is ready", node=settings.host.name, program=program_path(found))
    images_imported(name="Import images that containerd has lost")
    token_present(name="Create the Prometheus token", account="prometheus", token=TOKEN, ca=CA, reader="prometheus")


def program(settings: Settings, found: Artifact) -> Placed:
    """Copy the binary under its version, so that the previous version stays available for a rollback."""
    install(name="Install packages for K3s", packages=PACKAGES)
    path = program_path(found)
    binary = push(name="Copy the K3s binary", artifact=found, path=path)
    saved_before(name="Save the K3s datastore before an upgrade", program=path, node=settings.host.name)
    files.link(name="Link the current K3s version", path=PROGRAM, target=path)
    return binary


def configuration(settings: Settings) -> Placed:
    """Configure server, kubelet and containerd. In the lab, also the overrides for a shared kernel."""
    registries = {registry.name: registry_password(registry.name) for registry in settings.k3s.registries}
    passwords = secrets({"token": K3S_TOKEN, "agent_token": K3S_AGENT_TOKEN, "node": K3S_NODE_PASSWORD, **registries})
    addresses = [settings.vpn.address, settings.vpn.address_ipv6, settings.host.service_address]
    # Always the same list in the same order, however the controller connects: a change restarts the API.
    ways_in = [settings.k3s.node_ip, host.data.get("lan_address"), host.data.ssh_hostname]
    addresses += [address for address in ways_in if address]
    for_a_shared_kernel = [
        File("lab-config.yaml", f"{ETC}/config.yaml.d/90-lab.yaml"),
        File("lab-kubelet.conf", f"{AGENT}/kubelet.conf.d/90-lab.conf"),
        File("lab-containerd.toml", f"{AGENT}/containerd/config-v3.toml.d/90-lab.toml"),
    ]
    encrypted = cluster_is_encrypted()
    if cluster_nodes() and not encrypted:
        not_exercised("encryption between the machines of the cluster", "the kernel has no WireGuard", "k3s")
    flannel = f"{ETC}/flannel.json"
    return place(
        name="Configure K3s",
        component="k3s",
        entries=[
            Directory(ETC, mode="700"),
            Directory("/etc/rancher/node", mode="700"),
            Directory("/var/log/k3s", mode="700"),
            File("config.yaml.j2", f"{ETC}/config.yaml", mode="600"),
            File("flannel.json.j2", flannel) if encrypted else Absent(flannel),
            File("admission.yaml", f"{ETC}/admission.yaml", mode="600"),
            File("audit.yaml", f"{ETC}/audit.yaml", mode="600"),
            File("kubelet.conf", f"{AGENT}/kubelet.conf.d/50-minipc.conf", mode="600"),
            SecretFile("", f"{ETC}/token", content=f"{passwords['token'].reveal()}\n".encode()),
            SecretFile("", f"{ETC}/agent-token", content=f"{passwords['agent_token'].reveal()}\n".encode()),
            SecretFile("", "/etc/rancher/node/password", content=f"{passwords['node'].reveal()}\n".encode()),
            SecretFile("registries.yaml.j2", f"{ETC}/registries.yaml")
            if registries
            else Absent(f"{ETC}/registries.yaml"),
            File("k3s.service", "/etc/systemd/system/k3s.service"),
            *(for_a_shared_kernel if settings.where.shares_kernel and host.get_fact(InUserNamespace) else []),
        ],
        values={
            "k3s": settings.k3s,
            "node_name": settings.host.name,
            "node_interface": node_interface(),
            "names": [*dict.fromkeys([*addresses, *settings.k3s.api_names])],
            "registries": settings.k3s.registries,
            "passwords": passwords,
            "encrypted": encrypted,
            "pod_port": POD_WIREGUARD,
        },
    )


def contents() -> None:
    """Configure the first manifest of the cluster: Prometheus's account. `deploys/services.py` makes the namespaces."""
    place(
        name="Configure cluster manifests",
        component="k3s",
        entries=[
            # Of minipc 0.2. K3s leaves the objects of a file that is gone.
            Absent(f"{MANIFESTS}/minipc-data.yaml"),
            File("monitoring.yaml", f"{MANIFESTS}/minipc-monitoring.yaml", mode="600"),
            Directory("/etc/minipc/k3s"),
        ],
    )


if belongs_here("k3s"):
    k3s()
