"""Write the baselines, an Ansible playbook and a shell script, from what the deploys declare for a machine."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.core.paths import ROOT
from minipc.pyinfra_ext.converge import pyinfra_command

FOLDER_VARIABLE = "MINIPC_BENCH_FOLDER"


@dataclass(frozen=True)
class Baselines:
    """The baselines, and how they compare with the deploys.

    Attributes:
        folder: private; `site.yml` with `files/`, and `kit/` with `install.sh`.
        operations: number of operations that the deploys declare.
        tasks: number of tasks of the playbook.
        resources: number of tasks with loops counted by their items.
        left_out_of_playbook: operations that the playbook omits.
        left_out_of_script: operations that the script omits.
    """

    folder: Path
    operations: int
    tasks: int
    resources: int
    left_out_of_playbook: list[str]
    left_out_of_script: list[str]


def write_baselines(alias: str, folder: Path, env: dict[str, str]) -> Baselines:
    """Write both into the folder.

    Raises:
        MinipcError: pyinfra could not read the state of the machine.
    """
    files = [str(ROOT / "bench/listen.py"), *deploy_files(), str(ROOT / "bench/write_baselines.py")]
    command = pyinfra_command(LAB, files, "--dry", "--limit", alias)
    variables = env | {FOLDER_VARIABLE: str(folder)}
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=variables)
    if done.returncode or not (folder / "summary.json").exists():
        raise MinipcError(f"pyinfra ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return Baselines(folder, **json.loads((folder / "summary.json").read_text(encoding="utf-8")))
