"""Create the file of a new service, from a few values or from a compose file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minipc.config.load import group_data
from minipc.config.service import NO_REGISTRY
from minipc.config.services import read
from minipc.core.environment import PRODUCTION
from minipc.core.paths import ROOT
from minipc.services import compose, template
from minipc.services.template import Draft


def create(
    name: str,
    domains: Sequence[str],
    *,
    image: str | None = None,
    folder: Path | None = None,
    compose_file: Path | None = None,
    front: str | None = None,
    port: int = 8000,
    health: str = "/healthz",
    database: bool = True,
) -> tuple[Path, Draft]:
    """Write the file, valid at once, and return its path and what it says.

    Args:
        image, folder, compose_file: where the image comes from; at least one of them.
        front: the service in the compose file that users reach.

    Raises:
        RefusedError: the file exists.
        ConfigError: a value is not valid, or another service claims it; no file was written.
    """
    folders = group_data(PRODUCTION.name)["services_folders"]
    path = ROOT / folders[0] / f"{name}.yaml"
    node_port = template.free_node_port(read(folders))
    if compose_file:
        draft = compose.read(compose_file, name, list(domains), node_port, front)
        draft.image = image or draft.image
    else:
        draft = Draft(name, image or f"{NO_REGISTRY}/{name}", list(domains), node_port)
        draft.processes = {draft.front: {"port": port}}
        draft.health = {"live": health, "ready": health}
        if database:
            draft.postgres = {"database": name.replace("-", "_")}
            draft.environment = {"DATABASE_URL": template.DATABASE_URL}
    draft.build = str(folder.resolve()) if folder else draft.build
    template.write(draft, path, folders)
    return path, draft
