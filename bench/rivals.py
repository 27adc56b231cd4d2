"""Has playbook and script written from what the deploys declare for a machine that is converged."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from minipc.components import deploy_files
from minipc.converge import pyinfra_command
from minipc.errors import MinipcError
from minipc.paths import ROOT

FOLDER_VARIABLE = "MINIPC_BENCH_FOLDER"


@dataclass(frozen=True)
class Rivals:
    """What the contestants get.

    Attributes:
        folder: private; `site.yml` with `files/`, and `kit/` with `install.sh`.
        operations: how many the deploys declare.
        tasks: of the playbook.
        resources: the same with loops counted by their items.
        left_out_of_playbook: operations that Ansible is spared.
        left_out_of_script: operations that the script is spared.
    """

    folder: Path
    operations: int
    tasks: int
    resources: int
    left_out_of_playbook: list[str]
    left_out_of_script: list[str]


def write_rivals(alias: str, folder: Path, env: dict[str, str]) -> Rivals:
    """Writes both into the folder.

    Raises:
        MinipcError: pyinfra could not look at the machine.
    """
    files = [*deploy_files(), str(ROOT / "bench/write_rivals.py")]
    command = pyinfra_command("lab", files, "--dry", "--limit", alias)
    variables = env | {FOLDER_VARIABLE: str(folder)}
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=variables)
    if done.returncode or not (folder / "summary.json").exists():
        raise MinipcError(f"pyinfra ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return Rivals(folder, **json.loads((folder / "summary.json").read_text(encoding="utf-8")))
