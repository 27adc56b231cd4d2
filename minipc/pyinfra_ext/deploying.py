"""Helpers for deploy files: the machine's settings, secrets, upstream files and NOT EXERCISED notes.

An error here ends the run while pyinfra prepares, before anything is changed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pyinfra import context, logger
from pyinfra.api import Host
from pyinfra.facts.server import Arch

from minipc.artifacts import Artifact, resolve
from minipc.config import Settings, parse
from minipc.config.components import BY_NAME, Role, role_of
from minipc.config.service import Service
from minipc.core.errors import MinipcError, RefusedError
from minipc.core.paths import cache_dir
from minipc.evidence.event_stream import ArtifactUsed, Note, NotExercised
from minipc.pyinfra_ext.abort import stop
from minipc.pyinfra_ext.facts.images import ReleasedImages
from minipc.pyinfra_ext.facts.k3s import InterfaceOf
from minipc.pyinfra_ext.facts.machine import Admission, MachineAdmission, WireguardInKernel
from minipc.pyinfra_ext.facts.memory import recall, remember_facts
from minipc.pyinfra_ext.guards import admit, refuse_lockout, refuse_wrong_order
from minipc.pyinfra_ext.progress import record_operations, write_event
from minipc.secrets import Secret, load
from minipc.services import images
from minipc.services.images import ServiceImage

_INTERRUPTED = 130
# The kernel's name of an architecture -> Debian's name.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_settings: dict[str, Settings] = {}


def config() -> Settings:
    """Check that this is the machine in the inventory, and return its settings.

    Every deploy starts with this call, so no deploy uses the settings of the wrong machine. On an error the run ends.
    """
    host = context.host
    if host.name not in _settings:
        record_operations(context.state)
        remember_facts(host.state)
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
    """Return the named secrets. A missing secret stops the run while pyinfra prepares, before its first change.

    Args:
        names: name in the template -> name in the secret store.
        optional: keys of `names` that may be missing; missing ones are left out.
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
    """Return the address at which this machine reaches its off-site host; None if it has none."""
    alias = config().backups.offsite
    if alias is None:
        return None
    data = context.inventory.get_host(alias).data
    return str(data.offsite_address or data.ssh_hostname)


def service_image(service: Service) -> ServiceImage | None:
    """Return the image of a service that the machine is to have; None if this controller and the machine have none.

    In K3s, and in a rebuild, that is the one that was released last. Else a converge releases the one added last here.
    An archive that only the machine has, such as from its backup, is taken into the cache of this controller.
    """
    settings, here = config(), images.current(service.name)
    released: str | None = recall(ReleasedImages).get(service.name)
    in_rebuild = settings.postgres.from_backup != "refuse"
    if released is None or (here and settings.services.runtime != "k3s" and not in_rebuild):
        return here
    try:
        return images.find(service.name, released) or _take(service, released)
    except MinipcError as error:
        not_exercised(f"image of {service.name} on the machine", error.what, "images")
        return here


def _take(service: Service, digest: str) -> ServiceImage:
    with tempfile.TemporaryDirectory(dir=cache_dir("artifacts")) as scratch:
        archive = Path(scratch) / "image.tar"
        if not context.host.get_file(images.path_on_machine(service.name, digest), str(archive)):
            raise MinipcError("its archive cannot be read", "add the image again: `minipc service image`")
        return images.receive(service, archive, digest)


def role() -> Role:
    """Return the machine's role, from the inventory lists that contain it."""
    return role_of(context.host.groups)


def belongs_here(component: str) -> bool:
    """Return whether the component belongs on this machine.

    Without this check, a deploy file that runs without `--limit` would put files of the mini PC, such as its VPN key,
    onto other machines.
    """
    if role() in BY_NAME[component].roles:
        return True
    logger.info("%s: %s does not belong on a machine with the role %s; skipped", context.host.name, component, role())
    return False


def cluster_server() -> str | None:
    """Return the address of the cluster's server if this machine is an agent, else None."""
    alias = config().k3s.server
    if alias is None:
        return None
    server = context.inventory.hosts.get(alias)
    if server is None:
        _refuse(f"k3s_server is {alias!r}, which is not in the inventory", "correct `server=` of agent_machine()")
    return _node_address(server)


def cluster_nodes() -> list[str]:
    """Return the addresses of the other machines of this cluster. Only they may connect to its nodes."""
    alias, here = config().k3s.server, context.host
    found = cluster_agents()
    if alias:
        found[alias] = str(cluster_server())
    elif found:
        _node_address(here)  # The agents need this address to join.
    return [address for name, address in found.items() if name != here.name]


def cluster_is_encrypted() -> bool:
    """Return whether pods of different machines talk through WireGuard: with agents, if the kernel has it."""
    return bool(cluster_nodes()) and bool(context.host.get_fact(WireguardInKernel))


def cluster_agents() -> dict[str, str]:
    """Return the agents of this machine's cluster, including this machine if it is one: name -> address."""
    server = config().k3s.server or context.host.name
    return {each.name: _node_address(each) for each in context.inventory if each.data.get("k3s_server") == server}


def node_interface() -> str | None:
    """Return the interface to the other nodes; None if `k3s_node_ip` is not set, then K3s chooses it."""
    address = config().k3s.node_ip
    if address is None:
        return None
    found: str = context.host.get_fact(InterfaceOf, address=address)
    if not found:
        _refuse(
            f"k3s_node_ip is {address}, but no interface of the machine has this address",
            "correct it (`ip -br address`)",
        )
    return found


def _node_address(machine: Host) -> str:
    address = machine.data.get("k3s_node_ip")
    if not address:
        _refuse(
            f"k3s_node_ip of {machine.name} is not set, but agents join its cluster",
            "set it to the machine's address on the operator side, where the agents reach it",
        )
    return str(address)


def _refuse(what: str, next_step: str) -> NoReturn:
    stop(RefusedError(f"{context.host.name}: {what}", f"{next_step}; nothing was changed"))


def not_exercised(what: str, why: str, component: str) -> None:
    """Log and record that a part was left out. Every report lists it with its reason."""
    logger.warning("NOT EXERCISED: %s: %s", what, why)
    write_event(NotExercised(what=what, why=why, component=component))


def artifact(name: str, component: str) -> Artifact | None:
    """Return the upstream file for this machine, or None if it is not available; the component is then NOT EXERCISED.

    Args:
        name: as in artifacts.toml.
        component: the component that needs it.
    """
    machine = recall(Arch)
    try:
        found = resolve(name, _ARCHITECTURES.get(machine, machine))
    except MinipcError as error:
        stop(error)
    version = found.version or found.pinned_version
    write_event(ArtifactUsed(name=name, version=version, sha256=found.sha256, origin=found.origin))
    if found.origin == "missing":
        not_exercised(
            component, f"the artifact {name} {found.pinned_version} is not available: {found.why_missing}", component
        )
        return None
    return found


def _deploys_of_this_run() -> list[str]:
    """Return the names of the deploy files of this run, without `release`. Deploys run outside click's context."""
    files = map(Path, sys.argv[1:])
    return [file.stem for file in files if file.parent.name == "deploys" and file.stem != "release"]


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """Exit with 130 on Ctrl-C. pyinfra would exit with 0, as if the converge had succeeded."""
    write_event(Note(text="interrupted"))
    sys.stderr.write("\ninterrupted: run the same command again; it continues where it stopped\n")
    sys.stderr.flush()
    os._exit(_INTERRUPTED)
