"""An update is a merge: a user's files of an older commit are accepted by the current code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minipc.core.paths import ROOT

USER_FILES = Path(__file__).parent / "user_files"
OURS = (
    "minipc",
    "playbooks",
    "rehearsal",
    "group_data",
    "inventory",
    "templates",
    "deploys",
    "artifacts.toml",
    "pyproject.toml",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A user's copy after an update: the current code, and the user files of the older commit."""
    for name in OURS:
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("pins.json", "vpn_peers.json"))
        else:
            shutil.copy(source, target)
    for path in USER_FILES.rglob("*.txt"):
        shutil.copy(path, tmp_path / path.relative_to(USER_FILES).with_suffix(""))
    return tmp_path


def config(copy: Path) -> subprocess.CompletedProcess[str]:
    """Run `minipc config production` in the copy."""
    env = {**os.environ, "PYTHONPATH": str(copy), "MINIPC_STATE_DIR": str(copy / "state"), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "minipc.cli.main", "config", "production"]
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=110)


def machines(output: str) -> list[dict]:
    """The settings of each machine, as the command prints them."""
    decoder, found, rest = json.JSONDecoder(), [], output.lstrip()
    while rest.startswith("{"):
        settings, end = decoder.raw_decode(rest)
        found.append(settings)
        rest = rest[end:].lstrip()
    return found


def test_user_files_of_an_older_commit_are_accepted(copy: Path) -> None:
    done = config(copy)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    mini, offsite, agent = machines(done.stdout)
    assert mini["vpn"]["endpoint"] == "vpn.example.org"
    assert mini["firewall"]["operator_access"] == "vpn"
    assert [peer["name"] for peer in mini["vpn"]["peers"]] == ["laptop"]
    assert offsite["firewall"]["operator_networks"] == ["198.51.100.7/32"]
    assert agent["k3s"]["server"] == "minipc"
    known_hosts = (copy / "state/ssh/minipc@10.99.0.1.known_hosts").read_text()
    assert json.loads((copy / "inventory/pins.json").read_text())["minipc"]["host_key"] in known_hosts


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        (
            "group_data/production.py",
            "vpn_endpoint",
            "vpn_endpoints",
            "vpn_endpoints: unknown key; did you mean 'vpn_endpoint'",
        ),
        (
            "group_data/production.py",
            "vpn_endpoint",
            "edge_domain",
            "edge_domain: it is now `ingress.domains` in services/NAME.yaml",
        ),
        ("inventory/pins.json", '"host_key"', '"key"', "pins.json"),
        ("inventory/production.py", "offsite_machine(", "offsite_computer(", "offsite_computer"),
    ],
)
def test_a_user_file_that_is_refused_is_named(copy: Path, name: str, old: str, new: str, complaint: str) -> None:
    path = copy / name
    path.write_text(path.read_text().replace(old, new))
    done = config(copy)
    assert done.returncode != 0
    assert complaint in done.stderr
