"""Make the cluster again without touching data: `minipc cluster reset`.

The cluster holds no data. A datastore that SQLite cannot read is moved aside. A converge makes a new cluster, and
ArgoCD syncs what was approved, as in a rebuild.
"""

from __future__ import annotations

from minipc.core.environment import Environment
from minipc.core.errors import ConfigError
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import on
from playbooks.apply import apply

COMPONENTS = ("images", "k3s", "services", "argocd")
ASIDE = "/var/lib/minipc/k3s/reset"
# Certificates and tokens are not in the datastore: agents join again. Pods of the old cluster end with its containers.
_MOVE = f"""
set -eu
systemctl stop k3s
umask 077
mkdir -p {ASIDE}
if [ -d /var/lib/rancher/k3s/server/db ]; then
    rm -rf {ASIDE}/db
    mv /var/lib/rancher/k3s/server/db {ASIDE}/db
fi
systemctl reset-failed k3s 2>/dev/null || true
"""
STOP_LIMIT_S = 180


def reset(environment: Environment, alias: str | None = None) -> int:
    """Move the datastore aside, converge, release the approved services, and verify. Return the exit code.

    Raises:
        ConfigError: the machine's services do not run in K3s.
        CouldNotVerifyError: it cannot be reached.
        MinipcError: as `minipc apply`.
    """
    target = the_target(environment, alias)
    if target.settings.services.runtime != "k3s":
        raise ConfigError(f"{target.alias} has no cluster: its services run under podman", "`minipc triage`")
    return apply(environment, COMPONENTS, alias, first=("datastore", lambda: _move_aside(target)))


def _move_aside(target: Target) -> str:
    on(target, "sh -s", stdin=_MOVE, timeout_s=STOP_LIMIT_S)
    return f"moved to {ASIDE}/db"
