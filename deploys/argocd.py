"""ArgoCD: brings the cluster to what the deploy repository says, and itself, too.

pyinfra inventory/production.py deploys/argocd.py
"""

from urllib.parse import urlsplit

from pyinfra.api import deploy

from minipc.config import Settings
from minipc.core.addresses import known_host
from minipc.gitops.argocd_manifest import NAMESPACE, NODE_PORT, render
from minipc.gitops.hosted_repository import hosted_url, literal_address
from minipc.pyinfra_ext.deploying import artifact, belongs_here, config, not_exercised, offsite_address, secrets
from minipc.pyinfra_ext.operations import Content, Directory, File, place, unit
from minipc.pyinfra_ext.operations.k3s import objects_present, once, rolled_out, secret_present
from minipc.secrets import ed25519
from minipc.secrets.catalogue import ARGOCD_DEPLOY_KEY, ARGOCD_PASSWORD, SFTP_HOST_KEY
from minipc.secrets.hashing import hashed

ETC = "/etc/minipc/argocd"
# ArgoCD's own field manager, so that it takes over these objects without a conflict.
MANAGER = "argocd-controller"
PARTS = ["deployment/argocd-server", "deployment/argocd-repo-server", "deployment/argocd-redis"]
PARTS += ["statefulset/argocd-application-controller"]


@deploy("argocd")
def argocd() -> None:
    settings = config()
    if settings.services.runtime != "k3s":
        not_exercised("argocd", "services run under podman, without K3s", "argocd")
        return
    # deploys/k3s.py reports why there is no cluster.
    cluster, manifest = artifact("k3s", component="argocd"), artifact("argocd-manifest", component="argocd")
    if cluster is None or manifest is None or manifest.path is None:
        return
    repository, known_hosts = _repository(settings)
    if repository is None:
        not_exercised(
            "argocd", "there is no deploy repository: argocd_repository and backups_offsite are None", "argocd"
        )
        return

    # configure
    files = place(
        name="Configure ArgoCD",
        component="argocd",
        entries=[
            Directory(ETC, mode="700"),
            Content(render(manifest.path), f"{ETC}/install.yaml", mode="600"),
            File("known-hosts.yaml.j2", f"{ETC}/known-hosts.yaml", mode="600"),
            File("network.yaml.j2", f"{ETC}/network.yaml", mode="600"),
            File("applications.yaml.j2", f"{ETC}/applications.yaml", mode="600"),
        ],
        values={
            "argocd": settings.argocd,
            "repository": repository,
            "repository_port": urlsplit(repository).port or 22,
            # By name it may be anywhere, on that port.
            "repository_addresses": literal_address(repository, None, 0),
            "known_hosts": known_hosts,
        },
    )
    socket = place(
        name="Configure operator access to ArgoCD",
        component="argocd",
        entries=[
            File("minipc-argocd.socket.j2", "/etc/systemd/system/minipc-argocd.socket"),
            File("minipc-argocd.service.j2", "/etc/systemd/system/minipc-argocd.service"),
        ],
        values={"argocd": settings.argocd, "node_port": NODE_PORT},
    )

    # activate
    objects_present(name="Add the repository host key to ArgoCD", path=f"{ETC}/known-hosts.yaml", placed=files)
    objects_present(name="Restrict the network of ArgoCD", path=f"{ETC}/network.yaml", placed=files)
    passwords(repository)
    once(name="Bootstrap ArgoCD", namespace=NAMESPACE, path=f"{ETC}/install.yaml", manager=MANAGER, placed=files)
    rolled_out(name="Wait until ArgoCD runs", namespace=NAMESPACE, parts=PARTS)
    objects_present(name="Create the ArgoCD applications", path=f"{ETC}/applications.yaml", placed=files)
    unit(name="Enable operator access to ArgoCD", unit="minipc-argocd.socket", restart_on=[socket])


def passwords(repository: str) -> None:
    """Write the administrator password and the repository key. They are never in Git or in a file of the machine."""
    found = secrets({"password": ARGOCD_PASSWORD, "key": ARGOCD_DEPLOY_KEY})
    # Before the first start; otherwise ArgoCD generates a password.
    secret_present(
        name="Set the ArgoCD administrator password",
        namespace=NAMESPACE,
        secret="argocd-secret",  # noqa: S106 - its name
        data={"admin.password": hashed(found["password"])},
        labels={"app.kubernetes.io/name": "argocd-secret", "app.kubernetes.io/part-of": "argocd"},
    )
    secret_present(
        name="Add the repository key to ArgoCD",
        namespace=NAMESPACE,
        secret="deploy-repository",  # noqa: S106 - its name
        data={"type": "git", "url": repository, "sshPrivateKey": found["key"].reveal()},
        labels={"argocd.argoproj.io/secret-type": "repository"},
    )


def _repository(settings: Settings) -> tuple[str | None, list[str]]:
    """Return the address of the deploy repository and its known_hosts lines: configured, else on the off-site host."""
    known_hosts = [*settings.argocd.known_hosts]
    address = offsite_address()
    if settings.argocd.repository or address is None:
        return settings.argocd.repository, known_hosts
    port = settings.offsite.sftp_port
    host_key = ed25519.public_key(secrets({"host": SFTP_HOST_KEY})["host"])
    return hosted_url(address, port), [*known_hosts, known_host(address, port, host_key)]


if belongs_here("argocd"):
    argocd()
