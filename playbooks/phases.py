"""The phases of a rebuild: the playbook goes by this list, and the runbook is rendered from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minipc.components import Role, deploy_files
from minipc.converge import pyinfra_command
from minipc.errors import ConfigError

RESTORE = ("--data", "postgres_from_backup=restore")
"""What a converge within a rebuild is told: a missing database comes from a backup."""

HOST, OFFSITE = "HOST", "OFFSITE"
"""In the commands for a person: the machine's name in the inventory, and that of its off-site machine."""


@dataclass(frozen=True)
class Phase:
    """One step of the rebuild.

    Attributes:
        detail: what it is for, as the display shows it.
        components: those that are converged; everything when `everything` is set.
        role: of the machine that is converged.
        before, after: what a person types besides the converge.
        done_when: what has to be true before the next phase.
        runtime: only where the service runs there; None: everywhere.
    """

    name: str
    detail: str
    done_when: str
    components: tuple[str, ...] = ()
    everything: bool = False
    role: Role = "mini"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    runtime: Literal["k3s"] | None = None

    @property
    def files(self) -> list[str]:
        """The deploy files to run; empty when nothing is converged. Without the release: that is for the end."""
        if self.everything:
            return deploy_files()
        if not self.components:
            return []
        return [path for path in deploy_files(self.components, self.role) if not path.endswith("release.py")]

    @property
    def options(self) -> Sequence[str]:
        """What pyinfra is told besides."""
        return RESTORE if self.role == "mini" else ()

    @property
    def commands(self) -> list[str]:
        """What a person would type, on the controller."""
        converge = []
        if self.files:
            limit = HOST if self.role == "mini" else OFFSITE
            program, *words = pyinfra_command("production", self.files, "--limit", limit, *self.options)
            converge = [" ".join([Path(program).name, *words])]
        return [*self.before, *converge, *self.after]


ADOPT = Phase(
    "adopt",
    "the new machine's host key and identity",
    before=(f"minipc adopt {HOST} --fingerprint SHA256:…", f"minipc dns lower --host {HOST}"),
    done_when="the machine is enrolled (one that isn't blank is refused), and the TTL of the records is short",
)
FENCE = Phase(
    "fence",
    "a new key for the new machine; the lost one's is revoked",
    components=("offsite",),
    role="offsite",
    before=("minipc secrets renew --machine",),
    done_when="the off-site machine takes the new key only: should the lost machine come back, it can't archive",
)
HOST_AND_NETWORK = Phase(
    "host and network",
    "who may come in",
    components=("host", "vpn", "firewall"),
    done_when="the firewall is up: the public door is still shut, because nothing listens behind it",
)
DATA = Phase(
    "data",
    "restored, up to the last archived transaction",
    components=("repositories", "postgres"),
    after=(
        "ssh root@ADDRESS cat /var/lib/minipc/backups/restore.json",
        "ssh root@ADDRESS \"runuser -u postgres -- psql -Atc 'SELECT max(at) FROM heartbeat' minipc\"",
    ),
    done_when="the database takes writes; each data class is counted; the newest heartbeat is within the RPO's budget",
)
IMAGES = Phase(
    "images",
    "from the controller's cache: no registry is asked",
    components=("images",),
    done_when="the image archives are where K3s imports them from",
    runtime="k3s",
)
RUNTIME = Phase(
    "runtime",
    "K3s, and the databases' addresses in it",
    components=("redis", "k3s"),
    done_when="the node is ready",
    runtime="k3s",
)
SERVICE = Phase(
    "service",
    "what the service needs, and who starts it",
    components=("redis", "workload", "argocd"),
    done_when="ArgoCD runs and has read the deploy repository",
)
GITOPS = Phase(
    "gitops",
    "desired state from Git: migrations, API, workers, smoke",
    after=("minipc argocd sync --host HOST", "minipc release sync --host HOST"),
    done_when="the release passed its smoke: the API answers on the machine",
    runtime="k3s",
)
DOOR = Phase(
    "public door",
    "opens once the data is verified",
    components=("edge",),
    done_when="the service answers through the public door",
)
DNS = Phase(
    "DNS cutover",
    "the public name leads to the new machine",
    components=("dns",),
    after=(f"minipc dns cutover --host {HOST}",),
    done_when="the records are read back as they were set; caches may answer the old address for one TTL more",
)
PUBLIC_NAME = Phase(
    "public name",
    "answers through the edge",
    after=("curl --resolve DOMAIN:443:ADDRESS https://DOMAIN/api/readyz",),
    done_when="it answers 200: the end of the RTO",
)
BACKUPS_AGAIN = Phase(
    "backups again",
    "and everything that is left",
    everything=True,
    done_when="a backup is in each repository, and WAL arrives there",
)
SMOKE = Phase(
    "smoke",
    "the short list that tells whether the service is back",
    before=(f"minipc verify --smoke --host {HOST}",),
    done_when="data of each class is written and read, the workers beat, backups run, and the off-site machine answers",
)
VERIFY_AGAIN = Phase(
    "verify again",
    "from both sides",
    before=(f"minipc verify --host {HOST}",),
    done_when="no check fails",
)

TO_THE_OPEN_DOOR = (HOST_AND_NETWORK, DATA, IMAGES, RUNTIME, SERVICE, GITOPS, DOOR)
PHASES = (ADOPT, FENCE, *TO_THE_OPEN_DOOR, DNS, PUBLIC_NAME, BACKUPS_AGAIN, SMOKE, VERIFY_AGAIN)
"""A rebuild, in order."""


def named(name: str) -> Phase:
    """The phase of that name. Raises ConfigError."""
    found = [phase for phase in PHASES if phase.name == name]
    if not found:
        raise ConfigError(f"there is no phase {name!r}", f"there are: {', '.join(phase.name for phase in PHASES)}")
    return found[0]
