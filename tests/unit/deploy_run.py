"""Runs the deploys without a machine: what they would do, in order. Facts, secrets and upstream files are made up."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pyinfra
import pytest
from pyinfra import context
from pyinfra.api import Config, Host, Inventory, State, util
from pyinfra.api.state import StateStage

from minipc.artifacts import Artifact
from minipc.config import Settings, load
from minipc.config.components import COMPONENTS, Role, select
from minipc.core.paths import ROOT
from minipc.gitops import argocd_manifest
from minipc.pyinfra_ext import deploying
from minipc.pyinfra_ext.facts import memory
from minipc.pyinfra_ext.operations import packages
from minipc.pyinfra_ext.progress import split_name
from minipc.secrets import Secret, Secrets, hashing
from minipc.secrets.catalogue import Entry, whole
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
    "DataOfServices": [],
    "ImageFolders": [],
    "ReleasedImages": {},
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
    value_of: Callable[[Entry], str] = lambda entry: new_value(entry.generate or "alphanumeric"),
    **overrides: Any,
) -> Done:
    """All deploys of a machine of the lab.

    Args:
        foreign: also those that belong on other machines, as without `--limit`.
        ssh_hostname: where the converge comes in.
        value_of: returns the value of each secret.
        overrides: of group_data.
    """
    alias = ALIASES[role]
    state = _prepared(monkeypatch, {alias: load("lab", **overrides)}, ssh_hostname, value_of)
    installed: list[list[str]] = []
    packages_installed = packages.packages_installed

    def noted(packages: list[str], **more: Any) -> Any:
        installed.append(packages)
        return packages_installed(packages=packages, **more)

    monkeypatch.setattr(packages, "packages_installed", noted)

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
    """Return the order of everything on a server and its agent at once."""
    server = load("lab", services_runtime="k3s", k3s_node_ip="10.77.0.10")
    agent = load("lab", services_runtime="k3s", k3s_node_ip="10.77.0.11", k3s_server="mini")
    return order_of_all(monkeypatch, {"mini": server, AGENT: agent})


def order_of_all(monkeypatch: pytest.MonkeyPatch, machines: Mapping[str, Settings]) -> list[tuple[str, str]]:
    """Return component and name of every operation of site.py on these machines, in the order of pyinfra."""
    state = _prepared(monkeypatch, machines)
    state.set_stage(StateStage.Prepare)
    include = SimpleNamespace(include=lambda path: runpy.run_path(str(ROOT / path)))
    monkeypatch.setattr(pyinfra, "local", include, raising=False)
    monkeypatch.setattr(pyinfra, "is_cli", True)  # or operations are told apart by their number, not by their lines
    for alias in machines:
        host = state.inventory.get_host(alias)
        with context.ctx_state.use(state), context.ctx_inventory.use(state.inventory), context.ctx_host.use(host):
            runpy.run_path(str(ROOT / "deploys/site.py"))
    return [split_name(name) for operation in state.get_op_order() for name in state.op_meta[operation].names]


def _stack() -> list[tuple[FrameType]]:
    """Return the frames, that of the caller first, as pyinfra uses them."""
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame:
        found.append((frame,))
        frame = frame.f_back
    return found


def _prepared(
    monkeypatch: pytest.MonkeyPatch,
    machines: Mapping[str, Settings],
    ssh_hostname: str = LAN,
    value_of: Callable[[Entry], str] = lambda entry: new_value(entry.generate or "alphanumeric"),
) -> State:
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
    # `inspect` searches all modules for the file of each frame, and reads its lines: most of the time of a run.
    monkeypatch.setattr(util, "stack", _stack)
    monkeypatch.setattr(
        util, "getframeinfo", lambda frame: SimpleNamespace(filename=frame.f_code.co_filename, lineno=frame.f_lineno)
    )
    needed = [entry for settings in machines.values() for entry in whole(settings)]
    values = {entry.name: value_of(entry) for entry in needed}

    def secrets(environment: str, names: Iterable[str], optional: Iterable[str] = (), **_: Any) -> Secrets:
        return Secrets({name: Secret(name, values[name]) for name in names}, frozenset(optional))

    def upstream(name: str, arch: str) -> Artifact:
        return Artifact(name, "amd64", "locked", "1", f"{name}.zip", path=Path("/dev/null"), version="1", sha256="0")

    monkeypatch.setattr(Host, "get_fact", lambda host, fact, **_: FACTS[fact.__name__])
    monkeypatch.setattr(argocd_manifest, "render", lambda path: b"")
    monkeypatch.setattr(hashing, "_ROUNDS", 4)  # the fewest that bcrypt takes; nobody compares a hash here
    monkeypatch.setattr(memory, "_announced", memory.defaultdict(dict))
    monkeypatch.setattr(deploying, "_settings", dict(machines))
    monkeypatch.setattr(deploying, "load", secrets)
    monkeypatch.setattr(deploying, "resolve", upstream)
    return state
