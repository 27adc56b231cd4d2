"""Container images as files, where K3s imports them from: a rebuild needs no registry.

pyinfra inventory/production.py deploys/images.py
"""

from pyinfra.api import deploy

from minipc.deploying import artifact, belongs_here, config, not_exercised, role
from minipc.operations import Directory, place, push

# K3s imports what it finds here, when it starts and when a file changes.
IMAGES = "/var/lib/rancher/k3s/agent/images"
FILES = (("k3s-images", "k3s.tar.zst"), ("argocd-images", "argocd.tar"), ("workload-image", "workload.tar"))


@deploy("images")
def images() -> None:
    settings = config()
    if settings.workload.runtime != "k3s":
        not_exercised("images", f"the service runs as a {settings.workload.runtime}, without containers", "images")
        return
    place(name="make the directory", component="images", entries=[Directory(IMAGES)])
    # With a registry of its own the service's image is pulled from there; ArgoCD stays where the API is.
    left_out = {"workload-image"} if settings.k3s.registries else set()
    left_out |= {"argocd-images"} if role() == "agent" else set()
    for name, file in [each for each in FILES if each[0] not in left_out]:
        found = artifact(name, component="images")
        if found:
            push(name=f"place {name}", artifact=found, path=f"{IMAGES}/{file}", mode="644")


if belongs_here("images"):
    images()
