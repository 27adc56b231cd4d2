"""Container images as files, so that a rebuild needs no registry: K3s imports them, podman loads them.

pyinfra inventory/production.py deploys/images.py
"""

from pyinfra.api import deploy

from minipc.evidence.event_stream import ArtifactUsed
from minipc.pyinfra_ext.deploying import artifact, belongs_here, config, role, service_image
from minipc.pyinfra_ext.facts.images import K3S_IMAGES as K3S
from minipc.pyinfra_ext.operations import Absent, Directory, install, place, push
from minipc.pyinfra_ext.operations.podman import PACKAGES, image_kept, image_loaded, images_removed
from minipc.pyinfra_ext.progress import write_event
from minipc.services.images import ON_MACHINE, ServiceImage, path_on_machine

FILES = (("k3s-images", "k3s.tar.zst"), ("argocd-images", "argocd.tar"))


@deploy("images")
def images() -> None:
    settings = config()
    # Resolved before anything is changed: an archive may come from the machine.
    found = {service.name: service_image(service) for service in settings.services.declared}
    if role() == "mini":
        place(
            name="Create the directory of released images",
            component="images",
            entries=[Directory(ON_MACHINE, mode="700")],
        )
    images_removed(name="Remove the images of services that are gone", kept=list(found))
    if settings.services.runtime == "k3s":
        # The last one is where minipc 0.2 had its example's image.
        place(
            name="Create the image directory",
            component="images",
            entries=[Directory(K3S), Absent(f"{K3S}/workload.tar")],
        )
        # ArgoCD runs on the server, not on agents.
        left_out = {"argocd-images"} if role() == "agent" else set()
        for name, file in [each for each in FILES if each[0] not in left_out]:
            upstream = artifact(name, component="images")
            if upstream:
                push(name=f"Copy {name}", artifact=upstream, path=f"{K3S}/{file}", mode="644")
        for image in filter(None, found.values()):
            copy(image, f"{K3S}/service-{image.name}.tar")
    elif settings.services.declared:
        install(name="Install podman", packages=PACKAGES)
        for image in filter(None, found.values()):
            archive = path_on_machine(image.name, image.digest)
            copy(image, archive)
            image_loaded(
                name=f"Load the image of {image.name}",
                archive=archive,
                service=image.name,
                tag=image.digest.removeprefix("sha256:")[:12],
            )
            image_kept(name=f"Keep the image of {image.name} for backups", service=image.name, digest=image.digest)


def copy(image: ServiceImage, path: str) -> None:
    """Copy the image of a service from this controller."""
    found = image.artifact
    write_event(ArtifactUsed(name=found.name, version=image.tag, sha256=found.sha256, origin="local"))
    push(name=f"Copy the image of {image.name}", artifact=found, path=path, mode="644")


if belongs_here("images"):
    images()
