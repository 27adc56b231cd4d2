"""What runs here: git commit, versions, when. Last, so that it is only written once everything before it worked.

Not `minipc release`: that brings a version of the service into the cluster (docs/howto/release.md).

pyinfra inventory/production.py deploys/release.py
"""

from pyinfra.api import deploy

from minipc.deploying import config
from minipc.operations.release import release_recorded

PACKAGES = [
    "caddy",
    "chrony",
    "nftables",
    "openssh-server",
    "pgbackrest",
    "postgresql-17",
    "prometheus",
    "prometheus-alertmanager",
    "prometheus-blackbox-exporter",
    "prometheus-node-exporter",
    "prometheus-postgres-exporter",
    "prometheus-redis-exporter",
    "redis-server",
    "restic",
    "restic-rest-server",
    "syslog-ng-core",
    "systemd",
    "wireguard-go",
    "wireguard-tools",
]


@deploy("release")
def release() -> None:
    config()
    release_recorded(name="write down what runs here", packages=PACKAGES)


release()
