"""The deploy repository where the off-site machine hosts it: its address for ArgoCD and for the operator.

ArgoCD reads it with a key that can do nothing else; the operator writes it over the operator's own SSH.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from minipc.core.addresses import bracketed
from minipc.remote import ssh
from minipc.remote.inventory import Target

HOME = "/srv/minipc-offsite/git"
PATH = f"{HOME}/deploy.git"
ACCOUNT = "git"
BRANCH = "main"


@dataclass(frozen=True)
class Remote:
    """How the operator reaches the repository.

    Attributes:
        url: for git.
        environment: variables that git needs for it.
    """

    url: str
    environment: Mapping[str, str]


def hosted_url(address: str, port: int) -> str:
    """Where ArgoCD reads the repository on the off-site machine."""
    return f"ssh://{ACCOUNT}@{bracketed(address)}:{port}/deploy.git"


def address_of(mini: Target, offsite: Target | None) -> str | None:
    """Return where ArgoCD on a mini PC reads the deploy repository: configured, else on the off-site host."""
    if mini.settings.argocd.repository or offsite is None:
        return mini.settings.argocd.repository
    host = offsite.data.get("offsite_address") or offsite.data["ssh_hostname"]
    return hosted_url(str(host), mini.settings.offsite.sftp_port)


def literal_address(repository: str | None, offsite: str | None, port: int) -> list[tuple[int, str, int]]:
    """IP version, address and port of the deploy repository, as firewall rules need them; none for a name.

    Args:
        repository: its address where it is elsewhere; None: the off-site machine has it.
        offsite: address of that one.
        port: of its SFTP server.
    """
    host = offsite
    if repository:
        parts = urlsplit(repository)
        host, port = parts.hostname, parts.port or 22
    try:
        return [(ip_address(host or "").version, host or "", port)]
    except ValueError:
        return []


def operator_remote(offsite: Target) -> Remote:
    """Where the operator writes it: as root, over the operator's SSH, with the pinned host key."""
    config = ssh.write_config([(offsite.alias, offsite.data)])
    return Remote(f"ssh://{offsite.alias}{PATH}", {"GIT_SSH_COMMAND": f"ssh -F {shlex.quote(str(config))}"})
