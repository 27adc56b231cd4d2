"""The phases of a rebuild. The playbook follows this list, and the runbook is rendered from it.

Which components a phase converges is in `minipc/config/components.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minipc.config.components import COMPONENTS, Role, deploy_files, in_phase
from minipc.core.environment import PRODUCTION
from minipc.core.errors import ConfigError
from minipc.pyinfra_ext.converge import pyinfra_command

RESTORE = ("--data", "postgres_from_backup=restore")
"""Option of every converge within a rebuild: restore a missing database from a backup."""

LIST_REVOKED = (
    "cd /etc/minipc/offsite && install -m 644 replaced_keys fenced_keys.new && sync fenced_keys.new && "
    "mv fenced_keys.new fenced_keys"
)
"""On the off-site host: tells the machines with the revoked keys to stop serving (minipc_machine/replaced.py)."""

HOST, OFFSITE = "HOST", "OFFSITE"
"""Placeholders in commands for a person: name of the machine in the inventory, and of its off-site host."""


@dataclass(frozen=True)
class Phase:
    """One step of the rebuild.

    Attributes:
        detail: its purpose, as the display shows it.
        everything: converge all components.
        role: role of the machine that is converged.
        before, after: commands that a person types besides the converge.
        done_when: what must be true before the next phase.
        runtime: only where the service runs in it; None: everywhere.
    """

    name: str
    detail: str
    done_when: str
    everything: bool = False
    role: Role = "mini"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    runtime: Literal["k3s"] | None = None

    @property
    def files(self) -> list[str]:
        """Return the deploy files to run; none if nothing is converged. The release is recorded at the end only."""
        if self.everything:
            return deploy_files()
        components = in_phase(self.name)
        if not components:
            return []
        return [path for path in deploy_files(components, self.role) if not path.endswith("release.py")]

    @property
    def options(self) -> Sequence[str]:
        """Return more options of pyinfra."""
        return RESTORE if self.role == "mini" else ()

    @property
    def commands(self) -> list[str]:
        """Return the commands that a person would type."""
        converge = []
        if self.files:
            limit = HOST if self.role == "mini" else OFFSITE
            program, *words = pyinfra_command(PRODUCTION, self.files, "--limit", limit, *self.options)
            converge = [" ".join([Path(program).name, *words])]
        return [*self.before, *converge, *self.after]


ADOPT = Phase(
    "adopt",
    "enrol the new machine: host key and identity",
    before=(f"minipc adopt {HOST} --fingerprint SHA256:…", f"minipc dns lower --host {HOST}"),
    done_when="the machine is enrolled (a machine that is not blank is refused), and the TTL of the records is short",
)
PREFLIGHT = Phase(
    "preflight",
    "check that everything that the rebuild needs is available, before anything is revoked",
    before=(f"minipc preflight --for rebuild --host {HOST}",),
    done_when="each upstream file and each released image is available for this architecture; clock and disk are right",
)
FENCE = Phase(
    "fence",
    "create new keys for the new machine, and revoke those of the lost machine, which stops serving if it returns",
    role="offsite",
    before=("minipc secrets renew --machine",),
    after=(f"ssh root@{OFFSITE} '{LIST_REVOKED}'",),
    done_when="the off-site host accepts only the new keys: the lost machine can neither archive nor send metrics",
)
HOST_AND_NETWORK = Phase(
    "host and network",
    "configure Debian, the VPN and the firewall",
    done_when="the firewall is up; the public ports do not answer yet, because nothing listens there",
)
DATA = Phase(
    "data",
    "restore the database up to the last transaction that reached a repository or the off-site host",
    after=(
        "ssh root@ADDRESS cat /var/lib/minipc/backups/restore.json",
        "ssh root@ADDRESS \"runuser -u postgres -- psql -Atc 'SELECT max(at) FROM heartbeat' -Uminipc minipc\"",
    ),
    done_when="the database accepts writes, each data class is counted, the newest heartbeat is within the RPO budget",
)
IMAGES = Phase(
    "images",
    "copy the container images from the controller's cache, or from the restored backup; no registry is needed",
    done_when="the image archives are in the folder from which K3s imports them, or podman has loaded them",
)
RUNTIME = Phase(
    "runtime",
    "start Redis and K3s, with the addresses of the databases",
    done_when="the node is ready",
    runtime="k3s",
)
SERVICE = Phase(
    "service",
    "create the service's secrets in the cluster, and start ArgoCD",
    done_when="ArgoCD runs and has read the deploy repository",
)
GITOPS = Phase(
    "gitops",
    "release the desired state from Git: migrations, API, workers, smoke test",
    after=("minipc argocd sync --host HOST", "minipc release sync --host HOST"),
    done_when="the release passed its smoke test: the API answers on the machine",
    runtime="k3s",
)
INGRESS = Phase(
    "public ingress",
    "open the public ports, because the data is verified",
    done_when="the service answers through the public ingress",
)
DNS = Phase(
    "DNS cutover",
    "point the public name to the new machine",
    after=(f"minipc dns cutover --host {HOST}",),
    done_when="the records at the provider are correct; caches may return the old address for one more TTL",
)
PUBLIC_NAME = Phase(
    "public name",
    "check each public name through the ingress",
    after=("curl --resolve DOMAIN:443:ADDRESS https://DOMAIN/READY_PATH",),
    done_when="the ready path of each service answers 200: the end of the RTO",
)
BACKUPS_AGAIN = Phase(
    "backups again",
    "converge everything that is left, and take a backup",
    everything=True,
    done_when="each repository contains a backup and receives WAL",
)
SMOKE = Phase(
    "smoke",
    "run the smoke test: a short list of checks that shows whether the service is back",
    before=(f"minipc verify --smoke --host {HOST}",),
    done_when="data of each class is written and read, the workers run, backups run, and the off-site host answers",
)
VERIFY_AGAIN = Phase(
    "verify again",
    "run all checks from both sides",
    before=(f"minipc verify --host {HOST}",),
    done_when="no check fails",
)

OF_THE_SERVICES = (SERVICE, GITOPS)
"""Phases that fail if a service does not come back. What follows runs nevertheless."""

UP_TO_INGRESS = (HOST_AND_NETWORK, DATA, IMAGES, RUNTIME, SERVICE, GITOPS, INGRESS)
PHASES = (ADOPT, PREFLIGHT, FENCE, *UP_TO_INGRESS, DNS, PUBLIC_NAME, BACKUPS_AGAIN, SMOKE, VERIFY_AGAIN)
"""A rebuild, in order."""

FORMER_NAMES = {"public door": INGRESS.name}
"""Names that `--until` still accepts."""


def without_services() -> list[str]:
    """Return the deploy files of what no other phase converges: backups and monitoring among them."""
    return deploy_files(each.name for each in COMPONENTS if "mini" in each.roles and not each.phases)


def named(name: str) -> Phase:
    """Return the phase of that name, also of a former name. Raises ConfigError if there is none."""
    found = [phase for phase in PHASES if phase.name == FORMER_NAMES.get(name, name)]
    if not found:
        raise ConfigError(f"there is no phase {name!r}", f"there are: {', '.join(phase.name for phase in PHASES)}")
    return found[0]
