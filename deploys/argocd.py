"""ArgoCD: brings the cluster to what the deploy repository says, and itself, too.

pyinfra inventory/production.py deploys/argocd.py
"""

from pyinfra.api import deploy

from minipc import keys
from minipc.addresses import known_host
from minipc.argocd.manifest import NAMESPACE, NODE_PORT, render
from minipc.config import Settings
from minipc.deploy_repository import hosted_url
from minipc.deploying import artifact, belongs_here, config, not_exercised, offsite_address, secrets
from minipc.operations import Content, Directory, File, place, unit
from minipc.operations.k3s import objects_present, once, rolled_out, secret_present
from minipc.secrets.catalogue import ARGOCD_DEPLOY_KEY, ARGOCD_PASSWORD, SFTP_HOST_KEY
from minipc.secrets.hashing import hashed

ETC = "/etc/minipc/argocd"
# ArgoCD's own name as an owner of fields: it adopts itself without a conflict.
MANAGER = "argocd-controller"
PARTS = ["deployment/argocd-server", "deployment/argocd-repo-server", "deployment/argocd-redis"]
PARTS += ["statefulset/argocd-application-controller"]


@deploy("argocd")
def argocd() -> None:
    settings = config()
    if settings.workload.runtime != "k3s":
        not_exercised("argocd", f"the service runs as a {settings.workload.runtime}", "argocd")
        return
    # Without the cluster there is nothing to put it in; deploys/k3s.py says why.
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
        name="configure",
        component="argocd",
        entries=[
            Directory(ETC, mode="700"),
            Content(render(manifest.path), f"{ETC}/install.yaml", mode="600"),
            File("known-hosts.yaml.j2", f"{ETC}/known-hosts.yaml", mode="600"),
            File("applications.yaml.j2", f"{ETC}/applications.yaml", mode="600"),
        ],
        values={"argocd": settings.argocd, "repository": repository, "known_hosts": known_hosts},
    )
    door = place(
        name="configure the operator's way to it",
        component="argocd",
        entries=[
            File("minipc-argocd.socket.j2", "/etc/systemd/system/minipc-argocd.socket"),
            File("minipc-argocd.service.j2", "/etc/systemd/system/minipc-argocd.service"),
        ],
        values={"argocd": settings.argocd, "node_port": NODE_PORT},
    )

    # activate
    objects_present(name="know the repository's host", path=f"{ETC}/known-hosts.yaml", placed=files)
    passwords(repository)
    once(name="bootstrap", namespace=NAMESPACE, path=f"{ETC}/install.yaml", manager=MANAGER, placed=files)
    rolled_out(name="wait until it runs", namespace=NAMESPACE, parts=PARTS)
    objects_present(name="point it at the repository", path=f"{ETC}/applications.yaml", placed=files)
    unit(name="open the operator's way to it", unit="minipc-argocd.socket", restart_on=[door])


def passwords(repository: str) -> None:
    """The administrator's, and the key that reads the repository: never in Git, never in a file of the machine."""
    found = secrets({"password": ARGOCD_PASSWORD, "key": ARGOCD_DEPLOY_KEY})
    # Before its first start: it would make itself a password otherwise.
    secret_present(
        name="set the administrator's password",
        namespace=NAMESPACE,
        secret="argocd-secret",  # noqa: S106 - its name
        data={"admin.password": hashed(found["password"])},
        labels={"app.kubernetes.io/name": "argocd-secret", "app.kubernetes.io/part-of": "argocd"},
    )
    secret_present(
        name="give it the key that reads the repository",
        namespace=NAMESPACE,
        secret="deploy-repository",  # noqa: S106 - its name
        data={"type": "git", "url": repository, "sshPrivateKey": found["key"].reveal()},
        labels={"argocd.argoproj.io/secret-type": "repository"},
    )


def _repository(settings: Settings) -> tuple[str | None, list[str]]:
    """Address of the deploy repository, and its host's keys: the operator's choice, else the off-site machine's."""
    known_hosts = [*settings.argocd.known_hosts]
    address = offsite_address()
    if settings.argocd.repository or address is None:
        return settings.argocd.repository, known_hosts
    port = settings.offsite.sftp_port
    host_key = keys.public_key(secrets({"host": SFTP_HOST_KEY})["host"])
    return hosted_url(address, port), [*known_hosts, known_host(address, port, host_key)]


if belongs_here("argocd"):
    argocd()
