"""Sandbox for tests that crash the lab or list what it leaves behind: a controller within the controller.

Network, mounts below /run, control groups and lab state are separate, so a test can end everything in the sandbox, and
all leftovers come from the lab. It does not touch machines that a user keeps.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from minipc.core.paths import ROOT, cache_dir
from rehearsal.lab import cgroups
from rehearsal.lab.lifecycle import LOCK
from rehearsal.lab.network import RUN_DIR

PRIVATE_DIRECTORIES = ("/run/netns", "/run/wireguard", str(RUN_DIR))


class Sandbox:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.group = f"minipc-lab-test-{secrets.token_hex(4)}"
        self.hierarchies = cgroups.hierarchies()
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-euc", self._enter_groups(), "sh"],
            stdout=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == "ready\n"

    def start(self, code: str) -> subprocess.Popen[str]:
        """Start Python code in the sandbox. Its output is in `stdout`."""
        return subprocess.Popen(
            [
                *("nsenter", f"--target={self._holder.pid}", "--net", "--mount", "--cgroup"),
                *(sys.executable, "-c", code),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "MINIPC_STATE_DIR": str(self.state), "MINIPC_CACHE_DIR": str(cache_dir())},
        )

    def run(self, code: str, timeout: float = 60) -> str:
        """Run Python code in the sandbox. Returns its output. The test fails if the code fails."""
        process = self.start(code)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == 0, output
        return output

    def leftovers(self) -> dict[str, Any]:
        """Return everything in the sandbox that the lab can leave behind."""
        inside = "import json; from tests.lab.sandbox import describe; print(json.dumps(describe()))"
        found: dict[str, Any] = json.loads(self.run(inside))
        found["groups"] = sorted(map(str, self._groups()))
        found["processes"] = self.processes()
        found["disks"] = [_read(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]
        found["disks"] = [disk for disk in found["disks"] if disk.startswith(str(self.state))]
        return found

    def processes(self) -> list[str]:
        """Return the command lines of this lab's processes: those with its state directory or in its groups."""
        mark = f"MINIPC_STATE_DIR={self.state}".encode()
        pids = {int(pid) for group in self._groups() for pid in _read(group / "cgroup.procs").split()}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (directory / "environ").read_bytes():
                    pids.add(int(directory.name))
            except OSError:
                continue
        return [_command(pid) for pid in sorted(pids - {self._holder.pid}) if _command(pid)]

    def wait_until_clean(self, clean: dict[str, Any], timeout: float = 60) -> dict[str, Any]:
        """Wait until the leftovers equal `clean`, or the time is over. Returns the last ones."""
        deadline = time.monotonic() + timeout
        while (now := self.leftovers()) != clean and time.monotonic() < deadline:
            time.sleep(0.1)
        return now

    def close(self) -> None:
        self.run("from rehearsal import lab; lab.down('all')")
        os.kill(self._holder.pid, signal.SIGKILL)
        self._holder.wait()
        for hierarchy in self.hierarchies:
            (hierarchy / self.group).rmdir()

    def _groups(self) -> list[Path]:
        """Return every group in the sandbox. `os.walk` ignores groups that are removed meanwhile."""
        tops = [hierarchy / self.group for hierarchy in self.hierarchies]
        return [Path(path) for top in tops for path, _, _ in os.walk(top)]

    def _enter_groups(self) -> str:
        """Return shell code for the process that keeps the namespaces of the sandbox open."""
        outside, inside = [], ["ip link set lo up"]
        for hierarchy in map(str, self.hierarchies):
            group = shlex.quote(f"{hierarchy}/{self.group}")
            outside.append(f"mkdir {group}")
            for key in ("cpus", "mems"):
                source, target = f"{hierarchy}/cpuset.{key}", f"{group}/cpuset.{key}"
                outside.append(f"if [ -e {target} ] && [ -e {source} ]; then cat {source} > {target}; fi")
            outside.append(f"echo $$ > {group}/cgroup.procs")
            inside.append(f"mount --bind {group} {hierarchy}")
        for directory in PRIVATE_DIRECTORIES:
            outside.append(f"mkdir -p {directory}")
            inside.append(f"umount --recursive --lazy {directory} 2>/dev/null || true")
            inside.append(f"mount -t tmpfs tmpfs {directory}")
        inner = shlex.quote("; ".join([*inside, "echo ready", "exec sleep 3600"]))
        return "; ".join([*outside, f"exec unshare --net --mount --cgroup --propagation private sh -euc {inner}"])


def describe() -> dict[str, Any]:
    """Describe the caller's controller, as far as the lab changes it."""

    def lines(*argv: str) -> list[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()

    return {
        "interfaces": [line.split(":")[1].strip() for line in lines("ip", "-o", "link")],
        "namespaces": sorted(path.name for path in Path("/run/netns").iterdir()),
        "tables": lines("nft", "list", "tables"),
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "forwarding": [
            Path(f"/proc/sys/net/{name}").read_text().strip()
            for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
        ],
        "lab": sorted(str(path) for path in RUN_DIR.rglob("*") if path != LOCK),
    }


def _command(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()


def _read(path: Path) -> str:
    """Return the text of a file; empty if it was removed."""
    try:
        return path.read_text()
    except OSError:
        return ""
