"""Runs the deploys without a machine: what they would do, in order. Facts, secrets and upstream files are made up."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyinfra
import pytest
from pyinfra import context
from pyinfra.api import Config, Host, Inventory, State, util
from pyinfra.api.state import StateStage
from pyinfra.operations import apt

from minipc import deploying
from minipc.argocd import manifest
from minipc.artifacts import Artifact
from minipc.components import COMPONENTS, Role, select
from minipc.config import Settings, load
from minipc.facts import memory
from minipc.operations import packages
from minipc.paths import ROOT
from minipc.progress import split_name
from minipc.secrets import Secret, Secrets
from minipc.secrets.catalogue import whole
from minipc.secrets.generate import new_value

OFFSITE, AGENT = "offsite-mini", "agent-mini"
LAN = "10.77.0.10"
ALIASES: dict[Role, str] = {"mini": "mini", "offsite": OFFSITE, "agent": AGENT}
FACTS: dict[str, Any] = {
    "Arch": "x86_64",
    "BackupsState": SimpleNamespace(live=None, stanza=None),
    "Cpus": 4,
    "FileContents": {},
    "InUserNamespace": True,
    "InterfaceOf": "operator0",
    "MachineSize": {"memory_mb": 8192},
    "WireguardInKernel": False,
}


@dataclass
class Done:
    """What the deploys of a machine asked pyinfra for.

    Attributes:
        operations: component and name, in the order in which they would run.
        packages: of Debian.
        deploys: what each deploy file defines.
    """

    operations: list[tuple[str, str]] = field(default_factory=list)
    packages: set[str] = field(default_factory=set)
    deploys: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def run_deploys(
    monkeypatch: pytest.MonkeyPatch,
    role: Role = "mini",
    *,
    foreign: bool = False,
    ssh_hostname: str = LAN,
    **overrides: Any,
) -> Done:
    """All deploys of a machine of the lab.

    Args:
        foreign: also those that belong on other machines, as without `--limit`.
        ssh_hostname: where the converge comes in.
        overrides: of group_data.
    """
    alias = ALIASES[role]
    state = _prepared(monkeypatch, {alias: load("lab", **overrides)}, ssh_hostname)
    installed: list[list[str]] = []
    apt_packages = apt.packages

    def noted(packages: list[str], **more: Any) -> Any:
        installed.append(packages)
        return apt_packages(packages=packages, **more)

    monkeypatch.setattr(apt, "packages", noted)

    done = Done()
    host = state.inventory.get_host(alias)
    with context.ctx_state.use(state), context.ctx_inventory.use(state.inventory), context.ctx_host.use(host):
        for component in COMPONENTS if foreign else select([], role):
            done.deploys[component.name] = runpy.run_path(str(ROOT / component.deploy))
    names = [name for operation in host.op_hash_order for name in state.op_meta[operation].names]
    done.operations = [split_name(name) for name in names]
    done.packages = {package for each in installed for package in each}
    return done


def order_of_both(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Everything on a server and its agent at once: component and name, in the order in which pyinfra would do it."""
    server = load("lab", workload_runtime="k3s", k3s_node_ip="10.77.0.10")
    agent = load("lab", workload_runtime="k3s", k3s_node_ip="10.77.0.11", k3s_server="mini")
    state = _prepared(monkeypatch, {"mini": server, AGENT: agent})
    state.set_stage(StateStage.Prepare)
    include = SimpleNamespace(include=lambda path: runpy.run_path(str(ROOT / path)))
    monkeypatch.setattr(pyinfra, "local", include, raising=False)
    monkeypatch.setattr(pyinfra, "is_cli", True)  # or operations are told apart by their number, not by their lines
    for alias in ("mini", AGENT):
        host = state.inventory.get_host(alias)
        with context.ctx_state.use(state), context.ctx_inventory.use(state.inventory), context.ctx_host.use(host):
            runpy.run_path(str(ROOT / "deploys/site.py"))
    return [split_name(name) for operation in state.get_op_order() for name in state.op_meta[operation].names]


def _prepared(monkeypatch: pytest.MonkeyPatch, machines: Mapping[str, Settings], ssh_hostname: str = LAN) -> State:
    """An inventory with a machine of each role; of those that are named the settings are known."""
    data = {
        "ssh_hostname": ssh_hostname,
        "lan_address": LAN,
        "k3s_node_ip": LAN,
        "offsite_address": "203.0.113.7",
        "machine_identity": "id-1",
    }
    hosts = [("mini", data), (OFFSITE, data), (AGENT, data | {"k3s_server": "mini", "k3s_node_ip": "10.77.0.11"})]
    state = State()
    state.init(Inventory((hosts, {}), offsite=([OFFSITE], {}), k3s_agents=([AGENT], {})), Config())
    state.check_for_changes = False
    # Without the source lines around each frame, which nobody looks at here: a third of the time.
    monkeypatch.setattr(util, "stack", lambda: inspect.stack(0))
    monkeypatch.setattr(util, "getframeinfo", lambda frame: inspect.getframeinfo(frame, 0))
    needed = [entry for settings in machines.values() for entry in whole(settings)]
    values = {entry.name: new_value(entry.generate or "alphanumeric") for entry in needed}

    def secrets(environment: str, names: Iterable[str], optional: Iterable[str] = (), **_: Any) -> Secrets:
        return Secrets({name: Secret(name, values[name]) for name in names}, frozenset(optional))

    def upstream(name: str, arch: str) -> Artifact:
        return Artifact(name, "amd64", "locked", "1", f"{name}.zip", path=Path("/dev/null"), version="1", sha256="0")

    monkeypatch.setattr(Host, "get_fact", lambda host, fact, **_: FACTS[fact.__name__])
    monkeypatch.setattr(manifest, "render", lambda path: b"")
    monkeypatch.setattr(memory, "_announced", memory.defaultdict(dict))
    monkeypatch.setattr(packages, "_together", packages.defaultdict(list))
    monkeypatch.setattr(deploying, "_settings", dict(machines))
    monkeypatch.setattr(deploying, "load", secrets)
    monkeypatch.setattr(deploying, "resolve", upstream)
    return state
