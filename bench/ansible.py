"""Run ansible-core in a separate environment, with its fastest setup: pipelining, one connection that stays open."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.baselines import Baselines
from bench.timing import Sample, timed
from minipc.core.errors import MinipcError
from minipc.core.paths import cache_dir

VERSION = "2.19.14"
INSTALL_TIMEOUT_S = 600


def ensure_ansible() -> Path:
    """Return the folder with Ansible's programs. Install them from the package index into the cache if missing.

    Raises:
        MinipcError: it could not be installed; with pip's last lines.
    """
    environment = cache_dir("bench") / f"ansible-core-{VERSION}-python{sys.version_info[0]}.{sys.version_info[1]}"
    ready = environment / ".ready"
    if not ready.exists():
        programs = [
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [*_pip(environment), f"ansible-core=={VERSION}"],
        ]
        for argv in programs:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
            if done.returncode:
                tail = "\n".join(done.stderr.splitlines()[-5:])
                raise MinipcError(f"ansible-core {VERSION} cannot be installed:\n{tail}", "check the package index")
        ready.touch()
    return environment / "bin"


def _pip(environment: Path) -> list[str]:
    return [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def configure(baselines: Baselines, alias: str, data: dict[str, Any]) -> None:
    """Write Ansible's configuration and inventory next to the playbook."""
    configuration = configparser.ConfigParser(interpolation=None)
    configuration["defaults"] = {
        "inventory": str(baselines.folder / "hosts.yml"),
        "gathering": "explicit",
        "host_key_checking": "True",
        "nocows": "True",
        "retry_files_enabled": "False",
        "local_tmp": str(baselines.folder / "tmp"),
    }
    configuration["ssh_connection"] = {
        "pipelining": "True",
        # Ansible's own defaults, and the lab's pinned host keys.
        "ssh_args": "-C -o ControlMaster=auto -o ControlPersist=60s",
        "ssh_common_args": f"-o UserKnownHostsFile={data['ssh_known_hosts_file']} -o GlobalKnownHostsFile=/dev/null",
        # A socket's path may have 104 bytes at most.
        "control_path_dir": f"/tmp/minipc-bench-{alias}",
    }
    with (baselines.folder / "ansible.cfg").open("w", encoding="utf-8") as file:
        configuration.write(file)
    host = {
        "ansible_host": data["ssh_hostname"],
        "ansible_user": data["ssh_user"],
        "ansible_ssh_private_key_file": data["ssh_key"],
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    lines = [f"    {alias}:", *(f"      {key}: {value}" for key, value in host.items())]
    (baselines.folder / "hosts.yml").write_text("all:\n  hosts:\n" + "\n".join(lines) + "\n", encoding="utf-8")


def play(baselines: Baselines, programs: Path, log: Path, alias: str) -> tuple[Sample, int]:
    """Run the playbook. Return its time and how many tasks changed something.

    Raises:
        MinipcError: a task failed.
    """
    before = log.stat().st_size if log.exists() else 0
    variables = {"ANSIBLE_CONFIG": str(baselines.folder / "ansible.cfg"), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
    sample = timed([str(programs / "ansible-playbook"), str(baselines.folder / "site.yml")], log, alias, variables)
    return sample, changed_tasks(log.read_text(errors="replace")[before:])


def changed_tasks(said: str) -> int:
    """Return the number of changed tasks, from the recap of `ansible-playbook`.

    Raises:
        MinipcError: there is none.
    """
    found = re.search(r"changed=(\d+) ", said)
    if not found:
        raise MinipcError("ansible-playbook printed no recap", "read the log")
    return int(found[1])
