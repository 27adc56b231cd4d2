"""Shared fixtures of the end-to-end tests: one machine, created by the command that README shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minipc.core.errors import MinipcError
from minipc.core.paths import ROOT
from rehearsal import lab

# The tests are about two examples of different shape, whatever services the user of this clone has.
os.environ["MINIPC_SERVICES"] = "examples/parking/services:examples/parkday/services"
BIN = Path(sys.executable).parent
# The rehearsal loses this machine. The rebuilt machine and the off-site host remain. The name differs for each run,
# so that two clones can be tested at the same time.
MACHINE = f"test-{os.getpid()}"
REBUILT = f"{MACHINE}-2"
OFFSITE = f"offsite-{MACHINE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600, func_only=True))


@dataclass(frozen=True)
class Done:
    """A finished command: exit code and everything it printed."""

    code: int
    output: str

    @property
    def record(self) -> dict[str, Any]:
        """Return the record that the command says it wrote."""
        path = re.search(r"Record\s+(\S+)", self.output)
        assert path, self.output[-4000:]
        return dict(json.loads(Path(path[1]).read_text()))


def run(*argv: str, env: dict[str, str] | None = None, timeout_s: float = 300, cwd: Path = ROOT) -> Done:
    """Run one of the project's programs as a user would, without a terminal."""
    done = subprocess.run(
        [str(BIN / argv[0]), *argv[1:]],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        env=os.environ | (env or {}),
    )
    return Done(done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))


@pytest.fixture(scope="session")
def lab_ready() -> None:
    """Skip with a reason where disposable machines are not possible."""
    try:
        lab.ensure_prerequisites(install=True)
    except MinipcError as error:
        pytest.skip(f"NOT EXERCISED: {error}")


@dataclass(frozen=True)
class Rehearsal:
    """Output, record and report directory of `minipc rehearse --keep`."""

    done: Done
    record: dict[str, Any]
    directory: Path

    @property
    def why(self) -> str:
        """Say what kept it from passing: the phases and checks that failed."""
        phases = [f"{each['name']}: {each['detail']}" for each in self.record["phases"] if each["verdict"] != "pass"]
        checks = [f"{each['name']}: {each['message']}" for each in self.record["checks"] if each["outcome"] == "failed"]
        return "; ".join([*phases, *checks])[:2000]


@pytest.fixture(scope="session")
def rehearsal(lab_ready: None) -> Iterator[Rehearsal]:
    """Run one rehearsal. Its machines stay up for the other tests."""
    lab.down([MACHINE, REBUILT, OFFSITE])
    done = run("minipc", "rehearse", "--runtime", "stand-in", "--keep", "--name", MACHINE, timeout_s=1500)
    try:
        record = done.record
        yield Rehearsal(done, record, ROOT / "reports" / record["id"])
    finally:
        lab.down([MACHINE, REBUILT, OFFSITE])


def _machine(name: str, rehearsal: Rehearsal) -> lab.Machine:
    machine = next((each for each in lab.list_machines() if each.name == name), None)
    if not machine:
        pytest.fail(f"the rehearsal kept no machine {name}: {rehearsal.why}", pytrace=False)
    return machine


@pytest.fixture(scope="session")
def site(rehearsal: Rehearsal) -> lab.Machine:
    """Return the rebuilt machine with all components. A test that breaks something repairs it."""
    return _machine(REBUILT, rehearsal)


@pytest.fixture(scope="session")
def offsite(rehearsal: Rehearsal) -> lab.Machine:
    """Return the off-site host that keeps its backups."""
    return _machine(OFFSITE, rehearsal)


@dataclass(frozen=True)
class Pair:
    """A mini PC and its off-site host."""

    mini: lab.Machine
    offsite: lab.Machine


@pytest.fixture(scope="session")
def pair(site: lab.Machine, offsite: lab.Machine) -> Pair:
    """Return both machines. A test that breaks something repairs it."""
    return Pair(site, offsite)


@pytest.fixture
def blank(lab_ready: None, request: pytest.FixtureRequest) -> Iterator[lab.Machine]:
    """Provide a blank machine for one test."""
    name = "test-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[-24:].strip("-")
    lab.down(name)
    with lab.machine(name) as machine:
        yield machine


def on(machine: lab.Machine, script: str, *, check: bool = True, timeout_s: float = 120) -> str:
    """Run a shell script on the machine as root. Returns its output."""
    return lab.run(machine, ["bash", "-c", script], check=check, timeout=timeout_s).stdout


def converge(
    machine: lab.Machine, *deploys: str, options: Sequence[str] = (), env: dict[str, str] | None = None
) -> Done:
    """Run plain pyinfra on one lab machine."""
    files = [f"deploys/{name}.py" for name in deploys or ["site"]]
    return run("pyinfra", "-y", "--limit", machine.name, *options, "inventory/lab.py", *files, env=env, timeout_s=600)


def write_inventory(folder: Path, machine: lab.Machine, **changes: object) -> Path:
    """Write an inventory file for one lab machine with changed data. Returns its path."""
    path = folder / "inventory" / "lab.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "from rehearsal.lab.inventory import entry\n"
        "from rehearsal.lab.machine import find\n"
        f"name, data = entry(find({machine.name!r}))\n"
        f"lab = [(name, data | {changes!r})]\n"
    )
    return path


@pytest.fixture
def inventory(tmp_path: Path):
    """Return a function that writes an inventory file for one lab machine with changed data."""
    return partial(write_inventory, tmp_path)
