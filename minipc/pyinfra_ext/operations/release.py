"""Record on the machine what was converged: git commit, versions, time."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Sequence
from datetime import UTC, datetime

from pyinfra import context
from pyinfra.api import StringCommand, operation

from minipc.core.git import head
from minipc.pyinfra_ext.facts.release import RELEASE_FILE, PackageVersions, Release


@operation()
def release_recorded(packages: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Write commit, dirty flag and package versions to `/etc/minipc/release`.

    `converged_at` changes only if another field does: a converge without changes does not write the file.
    """
    host = context.host
    versions: dict[str, str] = host.get_fact(PackageVersions, packages=packages)
    current = host.get_fact(Release)
    commit = head()
    wanted = {"commit": commit.commit, "dirty": commit.dirty, "versions": versions}
    if {key: current.get(key) for key in wanted} == wanted:
        return
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    content = json.dumps(wanted | {"converged_at": moment}, indent=2, sort_keys=True) + "\n"
    encoded = base64.b64encode(content.encode()).decode()
    yield StringCommand(
        f"echo {encoded} | base64 -d > {RELEASE_FILE}.new && sync {RELEASE_FILE}.new "
        f"&& mv {RELEASE_FILE}.new {RELEASE_FILE}"
    )
