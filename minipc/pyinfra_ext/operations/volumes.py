"""Operations of the services' volumes."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence

from pyinfra import context
from pyinfra.api import StringCommand, operation

from minipc.pyinfra_ext.facts.backups import Backups, BackupsState
from minipc.pyinfra_ext.facts.volumes import Folder, Folders
from minipc_machine.volume_files import VOLUMES, Volume

BIN = "/usr/local/lib/minipc"


@operation()
def folders_present(volumes: Sequence[Volume]) -> Generator[StringCommand, None, None]:
    """Ensure that each volume has its folder, which only its service can enter. Content is left alone.

    The folder belongs to a number, not to a name: an account of the machine may have the same number.
    """
    wanted = {str(VOLUMES): Folder("0", "0", "711")}
    wanted |= {str(each.path.parent): Folder("0", "0", "711") for each in volumes}
    wanted |= {str(each.path): Folder(str(each.user), str(each.user), "700") for each in volumes}
    found: dict[str, Folder] = context.host.get_fact(Folders, paths=tuple(wanted))
    for path, folder in wanted.items():
        if found.get(path) != folder:
            yield StringCommand(f"install -d -o {folder.user} -g {folder.group} -m {folder.mode} {shlex.quote(path)}")


@operation()
def volumes_restored(volumes: Sequence[Volume]) -> Generator[StringCommand, None, None]:
    """Restore the volumes from their newest snapshots. Only within a rebuild, and once: what is there is left alone."""
    found: Backups = context.host.get_fact(BackupsState)
    missing = [each.key for each in volumes if each.key not in found.volumes]
    if missing:
        yield StringCommand(f"{BIN}/restore-volumes {shlex.join(missing)}")
