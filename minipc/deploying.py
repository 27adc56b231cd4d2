"""What a deploy begins with: the machine's settings, its secrets, the upstream files, and what it says it leaves out.

Whatever is wrong here ends the run while pyinfra prepares: nothing was changed yet.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pyinfra import context, logger
from pyinfra.api import Host
from pyinfra.facts.server import Arch

from minipc.artifacts import Artifact, resolve
from minipc.components import BY_NAME, Role, role_of
from minipc.config import Settings, parse
from minipc.errors import MinipcError, RefusedError
from minipc.facts.k3s import InterfaceOf
from minipc.facts.machine import Admission, MachineAdmission
from minipc.facts.memory import remember_facts
from minipc.guards import admit, refuse_lockout, refuse_wrong_order
from minipc.halt import stop
from minipc.progress import record_operations, write_event
from minipc.secrets import Secret, load
from minipc.timeline import ArtifactUsed, Note, NotExercised

_INTERRUPTED = 130
# The kernel's name for the architecture, and Debian's.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_settings: dict[str, Settings] = {}


def config() -> Settings:
    """The settings of the machine being converged, once it has proved to be the machine the inventory means.

    Every deploy starts with this call, so none can read its settings for the wrong machine.
    """
    host = context.host
    if host.name not in _settings:
        record_operations(context.state)
        remember_facts(host)
        signal.signal(signal.SIGINT, _interrupted)
        signal.signal(signal.SIGTERM, _interrupted)
        try:
            found: Admission = host.get_fact(MachineAdmission)
            admit(host.name, host.data.get("machine_identity"), found)
            refuse_wrong_order(host.name, _deploys_of_this_run())
            settings = parse(host.data.dict(), source=f"data of {host.name}")
            refuse_lockout(host.name, settings, found)
            _settings[host.name] = settings
        except MinipcError as error:
            stop(error)
    return _settings[host.name]


def secrets(names: Mapping[str, str], optional: Iterable[str] = ()) -> dict[str, Secret]:
    """The named secrets, resolved while pyinfra prepares: a missing one stops the run before its first change.

    Args:
        names: what the template calls it -> name in the secret store.
        optional: keys of `names` that may be missing; they are left out.
    """
    wanted = {key: name for key, name in names.items() if key not in set(optional)}
    maybe = {key: name for key, name in names.items() if key in set(optional)}
    try:
        settings = config()
        found = load(settings.environment, wanted.values(), optional=maybe.values(), settings=settings.secrets)
    except MinipcError as error:
        stop(error)
    there = {key: secret for key, name in maybe.items() if (secret := found.optional(name))}
    return {key: found[name] for key, name in wanted.items()} | there


def offsite_address() -> str | None:
    """Where this machine reaches its off-site machine; None when it has none."""
    alias = config().backups.offsite
    if alias is None:
        return None
    data = context.inventory.get_host(alias).data
    return str(data.offsite_address or data.ssh_hostname)


def role() -> Role:
    """What the machine is, by the lists of the inventory that it is in."""
    return role_of(context.host.groups)


def belongs_here(component: str) -> bool:
    """Whether the machine is one for that component: nothing of the mini PC gets onto another machine of the inventory,
    its VPN's key least of all, when a deploy file is run without `--limit`."""
    if role() in BY_NAME[component].roles:
        return True
    logger.info("%s: %s does not belong on this machine (%s): left out", context.host.name, component, role())
    return False


def cluster_server() -> str | None:
    """Address of the server whose cluster this machine is an agent of; None when it is none."""
    alias = config().k3s.server
    if alias is None:
        return None
    server = context.inventory.hosts.get(alias)
    if server is None:
        _refuse(f"k3s_server is {alias!r}, which is not in the inventory", "correct `server=` of agent_machine()")
    return _node_address(server)


def cluster_nodes() -> list[str]:
    """Addresses of the other machines of this one's cluster; nobody else may speak to its nodes."""
    alias, here = config().k3s.server, context.host
    found = cluster_agents()
    if alias:
        found[alias] = str(cluster_server())
    elif found:
        _node_address(here)  # Without it they would not know where to join.
    return [address for name, address in found.items() if name != here.name]


def cluster_agents() -> dict[str, str]:
    """The agents of this machine's cluster, itself among them when it is one: name -> address."""
    server = config().k3s.server or context.host.name
    return {each.name: _node_address(each) for each in context.inventory if each.data.get("k3s_server") == server}


def node_interface() -> str | None:
    """The interface over which this node speaks to the others; None leaves it to K3s, as `k3s_node_ip` does."""
    address = config().k3s.node_ip
    if address is None:
        return None
    found: str = context.host.get_fact(InterfaceOf, address=address)
    if not found:
        _refuse(f"k3s_node_ip is {address}, which no interface of the machine has", "correct it (`ip -br address`)")
    return found


def _node_address(machine: Host) -> str:
    address = machine.data.get("k3s_node_ip")
    if not address:
        _refuse(
            f"k3s_node_ip of {machine.name} is not set, and agents join its cluster",
            "set it to its address on the operator's side, where the agents reach it",
        )
    return str(address)


def _refuse(what: str, next_step: str) -> NoReturn:
    stop(RefusedError(f"{context.host.name}: {what}", f"{next_step}; nothing was changed"))


def not_exercised(what: str, why: str, component: str) -> None:
    """Says loudly that a part is left out; every report counts it."""
    logger.warning("NOT EXERCISED: %s: %s", what, why)
    write_event(NotExercised(what=what, why=why, component=component))


def artifact(name: str, component: str) -> Artifact | None:
    """The upstream file for this machine; None when it can't be had, and the component is then NOT EXERCISED.

    Args:
        name: as in artifacts.toml.
        component: who can't do without it.
    """
    machine = context.host.get_fact(Arch)
    try:
        found = resolve(name, _ARCHITECTURES.get(machine, machine))
    except MinipcError as error:
        stop(error)
    version = found.version or found.pinned_version
    write_event(ArtifactUsed(name=name, version=version, sha256=found.sha256, origin=found.origin))
    if found.origin == "missing":
        not_exercised(
            component, f"the artifact {name} {found.pinned_version} can't be had: {found.why_missing}", component
        )
        return None
    return found


def _deploys_of_this_run() -> list[str]:
    """Names of the deploy files that pyinfra was given, without the release. Deploys run outside click's context."""
    files = map(Path, sys.argv[1:])
    return [file.stem for file in files if file.parent.name == "deploys" and file.stem != "release"]


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """pyinfra exits 0 on Ctrl-C; a half-done converge is no success."""
    write_event(Note(text="interrupted"))
    sys.stderr.write("\ninterrupted: run the same command again, it goes on where it stopped\n")
    sys.stderr.flush()
    os._exit(_INTERRUPTED)
