"""What the end-to-end tests share: one machine, made by the very command that README shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minipc import lab
from minipc.errors import MinipcError
from minipc.paths import ROOT

BIN = Path(sys.executable).parent
# The rehearsal loses it; what is left is the machine that took its place, and the off-site one.
# A name of its own for each run: two clones may be tested side by side.
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


def run(*argv: str, env: dict[str, str] | None = None, timeout_s: float = 300, cwd: Path = ROOT) -> Done:
    """Runs one of the project's programs as a user would, without a terminal."""
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
    """Skips, loudly, where disposable machines can't be had."""
    try:
        lab.ensure_prerequisites(install=True)
    except MinipcError as error:
        pytest.skip(f"NOT EXERCISED: {error}")


@dataclass(frozen=True)
class Rehearsal:
    """What `minipc rehearse --keep` printed and left."""

    done: Done
    record: dict[str, Any]
    directory: Path


@pytest.fixture(scope="session")
def rehearsal(lab_ready: None) -> Iterator[Rehearsal]:
    """The whole story once; its machine stays up for the other tests."""
    lab.down([MACHINE, REBUILT, OFFSITE])
    done = run("minipc", "rehearse", "--runtime", "stand-in", "--keep", "--name", MACHINE, timeout_s=1500)
    try:
        found = re.search(r"Record\s+(\S+)", done.output)
        assert found, done.output
        record = json.loads(Path(found[1]).read_text())
        yield Rehearsal(done, record, ROOT / "reports" / record["id"])
    finally:
        lab.down([MACHINE, REBUILT, OFFSITE])


def _machine(name: str) -> lab.Machine:
    machine = next((each for each in lab.list_machines() if each.name == name), None)
    assert machine, f"the rehearsal left no machine {name}"
    return machine


@pytest.fixture(scope="session")
def site(rehearsal: Rehearsal) -> lab.Machine:
    """A machine with everything on it: the rebuilt one. A test that breaks something mends it."""
    return _machine(REBUILT)


@pytest.fixture(scope="session")
def offsite(rehearsal: Rehearsal) -> lab.Machine:
    """The machine that keeps its backups."""
    return _machine(OFFSITE)


@dataclass(frozen=True)
class Pair:
    """A mini PC and the off-site machine that keeps its backups."""

    mini: lab.Machine
    offsite: lab.Machine


@pytest.fixture(scope="session")
def pair(site: lab.Machine, offsite: lab.Machine) -> Pair:
    """Both. A test that breaks something mends it."""
    return Pair(site, offsite)


@pytest.fixture
def blank(lab_ready: None, request: pytest.FixtureRequest) -> Iterator[lab.Machine]:
    """A machine of the test's own, with nothing on it."""
    name = "test-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[-24:].strip("-")
    lab.down(name)
    with lab.machine(name) as machine:
        yield machine


def on(machine: lab.Machine, script: str, *, check: bool = True, timeout_s: float = 120) -> str:
    """Runs a shell script on the machine as root and returns what it printed."""
    return lab.run(machine, ["bash", "-c", script], check=check, timeout=timeout_s).stdout


def converge(
    machine: lab.Machine, *deploys: str, options: Sequence[str] = (), env: dict[str, str] | None = None
) -> Done:
    """Plain pyinfra on one machine of the lab."""
    files = [f"deploys/{name}.py" for name in deploys or ["site"]]
    return run("pyinfra", "-y", "--limit", machine.name, *options, "inventory/lab.py", *files, env=env, timeout_s=600)


@pytest.fixture
def inventory(tmp_path: Path):
    """Writes an inventory file of its own for one lab machine, with other connection data."""

    def write(machine: lab.Machine, **changes: object) -> Path:
        (tmp_path / "inventory").mkdir(exist_ok=True)
        path = tmp_path / "inventory" / "lab.py"
        path.write_text(
            "from minipc.lab.inventory import entry\n"
            "from minipc.lab.machine import find\n"
            f"name, data = entry(find({machine.name!r}))\n"
            f"lab = [(name, data | {changes!r})]\n"
        )
        return path

    return write
