"""ansible-core in an environment of its own, set up the way that is fast: pipelining, one connection kept open."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.rivals import Rivals
from bench.timing import Sample, timed
from minipc.errors import MinipcError
from minipc.paths import cache_dir

VERSION = "2.19.14"
INSTALL_TIMEOUT_S = 600


def ensure_ansible() -> Path:
    """The folder with Ansible's programs; installed from the package index into the cache when missing.

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
                raise MinipcError(f"ansible-core {VERSION} can't be installed:\n{tail}", "check the package index")
        ready.touch()
    return environment / "bin"


def _pip(environment: Path) -> list[str]:
    return [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def configure(rivals: Rivals, alias: str, data: dict[str, Any]) -> None:
    """Writes Ansible's configuration and inventory beside the playbook."""
    configuration = configparser.ConfigParser(interpolation=None)
    configuration["defaults"] = {
        "inventory": str(rivals.folder / "hosts.yml"),
        "gathering": "explicit",
        "host_key_checking": "True",
        "nocows": "True",
        "retry_files_enabled": "False",
        "local_tmp": str(rivals.folder / "tmp"),
    }
    configuration["ssh_connection"] = {
        "pipelining": "True",
        # Ansible's own defaults, and the lab's pinned host keys.
        "ssh_args": "-C -o ControlMaster=auto -o ControlPersist=60s",
        "ssh_common_args": f"-o UserKnownHostsFile={data['ssh_known_hosts_file']} -o GlobalKnownHostsFile=/dev/null",
        # A socket's path may have 104 bytes at most.
        "control_path_dir": f"/tmp/minipc-bench-{alias}",
    }
    with (rivals.folder / "ansible.cfg").open("w", encoding="utf-8") as file:
        configuration.write(file)
    host = {
        "ansible_host": data["ssh_hostname"],
        "ansible_user": data["ssh_user"],
        "ansible_ssh_private_key_file": data["ssh_key"],
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    lines = [f"    {alias}:", *(f"      {key}: {value}" for key, value in host.items())]
    (rivals.folder / "hosts.yml").write_text("all:\n  hosts:\n" + "\n".join(lines) + "\n", encoding="utf-8")


def play(rivals: Rivals, programs: Path, log: Path, alias: str) -> tuple[Sample, int]:
    """Runs the playbook; returns how long it took and how many tasks changed something.

    Raises:
        MinipcError: a task failed.
    """
    before = log.stat().st_size if log.exists() else 0
    variables = {"ANSIBLE_CONFIG": str(rivals.folder / "ansible.cfg"), "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
    sample = timed([str(programs / "ansible-playbook"), str(rivals.folder / "site.yml")], log, alias, variables)
    return sample, changed_tasks(log.read_text(errors="replace")[before:])


def changed_tasks(said: str) -> int:
    """From the recap that `ansible-playbook` ends with.

    Raises:
        MinipcError: there is none.
    """
    found = re.search(r"changed=(\d+) ", said)
    if not found:
        raise MinipcError("ansible-playbook printed no recap", "read the log")
    return int(found[1])
