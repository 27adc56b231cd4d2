"""K3s: runs the service and ArgoCD, and nothing that has data.

pyinfra inventory/production.py deploys/k3s.py
"""

from ipaddress import ip_address

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import files

from minipc.artifacts import Artifact
from minipc.config import Settings
from minipc.deploying import artifact, belongs_here, config, node_interface, not_exercised, secrets
from minipc.facts.k3s import PROGRAM, InUserNamespace
from minipc.operations import Absent, Directory, File, Placed, SecretFile, install, place, push, unit
from minipc.operations.k3s import PACKAGES, node_ready, program_path, saved_before, token_present
from minipc.secrets.catalogue import K3S_AGENT_TOKEN, K3S_NODE_PASSWORD, K3S_TOKEN, registry_password

ETC = "/etc/rancher/k3s"
MANIFESTS = "/var/lib/rancher/k3s/server/manifests"
TOKEN, CA = "/etc/minipc/k3s/prometheus.token", "/etc/minipc/k3s/ca.crt"
AGENT = "/var/lib/rancher/k3s/agent/etc"


@deploy("k3s")
def k3s() -> None:
    settings = config()
    if settings.workload.runtime != "k3s":
        not_exercised("k3s", f"the service runs as a {settings.workload.runtime}", "k3s")
        return
    found = artifact("k3s", component="k3s")
    if found is None:
        # Prometheus is told where these are, and starts without them only if they exist.
        for path in (TOKEN, CA):
            files.file(name=f"have {path}", path=path, mode="600")
        return

    # install
    binary = program(settings, found)

    # configure
    kernel = place(
        name="configure kernel modules",
        component="k3s",
        entries=[File("modules.conf", "/etc/modules-load.d/minipc-k3s.conf")],
    )
    configured = configuration(settings)
    contents(settings)

    # activate
    unit(name="load kernel modules", unit="systemd-modules-load.service", restart_on=[kernel])
    unit(name="activate", unit="k3s.service", restart_on=[binary, configured])
    node_ready(name="wait until the node is ready", node=settings.host.name, program=program_path(found))
    token_present(name="let Prometheus see what runs", account="prometheus", token=TOKEN, ca=CA, reader="prometheus")


def program(settings: Settings, found: Artifact) -> Placed:
    """The binary, by version, so that the one before is still there to go back to."""
    install(name="install packages", packages=PACKAGES)
    path = program_path(found)
    binary = push(name="place the program", artifact=found, path=path)
    saved_before(name="save the datastore before an upgrade", program=path, node=settings.host.name)
    files.link(name="use this version", path=PROGRAM, target=path)
    return binary


def configuration(settings: Settings) -> Placed:
    """Of the server, the kubelet and containerd; with what a kernel shared with the controller needs, in the lab."""
    registries = {registry.name: registry_password(registry.name) for registry in settings.k3s.registries}
    passwords = secrets({"token": K3S_TOKEN, "agent_token": K3S_AGENT_TOKEN, "node": K3S_NODE_PASSWORD, **registries})
    addresses = [settings.vpn.address, settings.vpn.address_ipv6, settings.host.service_address]
    # The same list, in the same order, whichever way this converge comes in: another one restarts the API.
    ways_in = [settings.k3s.node_ip, host.data.get("lan_address"), host.data.ssh_hostname]
    addresses += [address for address in ways_in if address]
    lab = [
        File("lab-config.yaml", f"{ETC}/config.yaml.d/90-lab.yaml"),
        File("lab-kubelet.conf", f"{AGENT}/kubelet.conf.d/90-lab.conf"),
        File("lab-containerd.toml", f"{AGENT}/containerd/config-v3.toml.d/90-lab.toml"),
    ]
    in_lab = settings.environment == "lab" and host.get_fact(InUserNamespace)
    return place(
        name="configure",
        component="k3s",
        entries=[
            Directory(ETC, mode="700"),
            Directory("/etc/rancher/node", mode="700"),
            Directory("/var/log/k3s", mode="700"),
            File("config.yaml.j2", f"{ETC}/config.yaml", mode="600"),
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
            *(lab if in_lab else []),
        ],
        values={
            "k3s": settings.k3s,
            "node_name": settings.host.name,
            "node_interface": node_interface(),
            "names": [*dict.fromkeys([*addresses, *settings.k3s.api_names])],
            "registries": settings.k3s.registries,
            "passwords": passwords,
        },
    )


def contents(settings: Settings) -> None:
    """What is in the cluster from its start: the way to the data outside it, and Prometheus's account."""
    address = settings.host.service_address
    place(
        name="configure what is in the cluster",
        component="k3s",
        entries=[
            File("data.yaml.j2", f"{MANIFESTS}/minipc-data.yaml", mode="600"),
            File("monitoring.yaml", f"{MANIFESTS}/minipc-monitoring.yaml", mode="600"),
            Directory("/etc/minipc/k3s"),
        ],
        values={
            "address": address,
            "address_type": f"IPv{ip_address(address).version}",
            "services": {"postgres": settings.postgres.port, "redis": settings.redis.port},
        },
    )


if belongs_here("k3s"):
    k3s()
