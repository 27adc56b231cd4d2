"""Operations of the Redis queues."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Sequence

from pyinfra import context
from pyinfra.api import StringCommand, operation

from minipc.pyinfra_ext.facts.backups import Backups, BackupsState
from minipc.pyinfra_ext.facts.redis import QueueConfigurations
from minipc.pyinfra_ext.facts.systemd import STAMPS
from minipc.services.queues import Queue

BIN = "/usr/local/lib/minipc"


@operation()
def queues_restored(queues: Sequence[Queue]) -> Generator[StringCommand, None, None]:
    """Restore the queues from the newest backup, before they start. Only within a rebuild, and once."""
    found: Backups = context.host.get_fact(BackupsState)
    for queue in queues:
        if queue.folder not in found.state:
            folder = shlex.quote(queue.folder)
            yield StringCommand(f"{BIN}/restore-state {folder} && {BIN}/load-queue {folder}")


@operation()
def queues_removed(kept: Sequence[Queue]) -> Generator[StringCommand, None, None]:
    """Stop the queues that are not declared any more. Their data stays."""
    wanted = {queue.configuration for queue in kept}
    for path in context.host.get_fact(QueueConfigurations):
        if path not in wanted:
            name = path.removeprefix("/etc/redis/redis-").removesuffix(".conf")
            unit = shlex.quote(f"redis-server@{name}.service")
            files = shlex.join([path, f"/etc/redis/{name}.acl"])
            yield StringCommand(f"systemctl disable --now --quiet {unit}; rm -f {files} {STAMPS}/{unit}")
