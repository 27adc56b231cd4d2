"""Power cuts: a converge, a backup or a restore drill stops at any moment, and the same command then ends as usual.

A container's kernel outlives its machine, so a disk that loses what it had not yet written is NOT EXERCISED here.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minipc import config
from minipc.core.environment import LAB
from minipc.core.variables import EVENTS_VARIABLE, PLACED_VARIABLE
from minipc.evidence.event_stream import OperationStart, read
from minipc.services import images
from playbooks.adopt import adopt
from rehearsal import lab
from rehearsal.lab.inventory import entry
from rehearsal.machines import group_in_environment, prepare_secrets
from tests.lab.conftest import BIN, ROOT, converge, on, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400, func_only=True)]

NAME = f"cut-{os.getpid()}"
ENV = {"MINIPC_SERVICES": "examples/parkday/services"}
IN_CONVERGE, IN_BACKUP, IN_DRILL = 20, 5, 5
SQL = "runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1"

# What the machine consists of: type, mode, owner and content of each file, packages, and units that start at boot.
# What is generated or counts time on each machine is left out.
MANIFEST = r"""
import hashlib, os, stat, subprocess
OWN = ("/etc/machine-id", "/etc/ssh/ssh_host_", "/etc/ssl/", "/etc/minipc/identity", "/etc/.pwd.lock", "/etc/group-",
       "/etc/gshadow", "/etc/passwd-", "/etc/shadow", "/etc/subuid-", "/etc/subgid-", "/etc/ld.so.cache",
       "/var/lib/minipc/drills", "/var/lib/minipc/backups", "/root/.ssh", "/var/lib/minipc/certificates",
       "/etc/minipc/release", "/var/lib/minipc/stamps", "/var/lib/minipc/artifacts",
       "/var/lib/minipc/measure-services")
for top in ("/etc", "/usr/local", "/opt", "/var/lib/minipc", "/root", "/var/spool/cron"):
    for folder, names, files in os.walk(top):
        names.sort()
        for path in sorted(os.path.join(folder, each) for each in names + files):
            if path.startswith(OWN):
                continue
            found = os.lstat(path)
            content = ""
            if stat.S_ISREG(found.st_mode):
                content = hashlib.sha256(open(path, "rb").read()).hexdigest()
            elif stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)
            print(path, oct(found.st_mode), found.st_uid, found.st_gid, content)
for command in ("dpkg -l", "systemctl list-unit-files --state=enabled --no-legend", "systemctl --failed --no-legend",
                "runuser -u postgres -- psql -XAtc 'SELECT rolname, rolsuper FROM pg_roles ORDER BY 1'"):
    print(subprocess.run(command, shell=True, capture_output=True, text=True).stdout)
"""


def manifest(machine: lab.Machine) -> list[str]:
    return on(machine, f"python3 - <<'END'\n{MANIFEST}\nEND").splitlines()


def blank() -> lab.Machine:
    """Return a new adopted machine. It always has the same name and addresses."""
    lab.down(NAME)
    machine = lab.up(NAME, disk_gb=6, podman=True)
    adopt(LAB, entry(machine), machine.host_key_fingerprint)
    return machine


def cut(machine: lab.Machine, process: subprocess.Popen[bytes]) -> None:
    """Cut the power, end the controller's program, which would wait, and start the machine again."""
    lab.power_off(machine)
    process.terminate()
    process.wait(timeout=60)
    lab.start(machine)


@pytest.fixture(scope="module")
def reference(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """Converge a machine without a cut: its manifest, the contents of placed files, the number of operations."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENV.items():
            patch.setenv(name, value)
        with group_in_environment(LAB):
            prepare_secrets(LAB)
        for service in config.load(LAB.name).services.declared:
            if isinstance(missing := images.ensure(service), images.Missing):
                pytest.skip(f"NOT EXERCISED: {missing.reason}")
        machine = blank()
        try:
            variables = {EVENTS_VARIABLE: str(folder / "events"), PLACED_VARIABLE: str(folder / "placed")}
            done = converge(machine, env=ENV | variables)
            assert done.code == 0, done.output[-4000:]
            placed = sorted(set((folder / "placed").read_text().split("\n")) - {""})
            yield {
                "manifest": manifest(machine),
                "contents": contents(machine, placed),
                "operations": operations(folder / "events"),
            }
        finally:
            lab.down(NAME)


def operations(events: Path) -> int:
    return sum(isinstance(event, OperationStart) for event in read(events)) if events.exists() else 0


def contents(machine: lab.Machine, paths: list[str]) -> dict[str, bytes]:
    """Return the contents of the files that exist. A new machine has no Python, but it has tar."""
    named = " ".join(shlex.quote(path) for path in paths)
    packed = on(machine, f"tar --create --ignore-failed-read {named} 2>/dev/null | base64 --wrap=0")
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as tar:
        return {f"/{each.name}": tar.extractfile(each).read() for each in tar if each.isfile()}


def half_written(found: dict[str, bytes], complete: dict[str, bytes]) -> list[str]:
    """Return the files that have only the beginning of their content."""
    return [
        path
        for path, text in found.items()
        if path in complete and text != complete[path] and complete[path].startswith(text)
    ]


def test_a_converge_that_is_cut_ends_in_the_same_state(reference, tmp_path: Path) -> None:
    machine = blank()
    for number in range(IN_CONVERGE):
        after = 1 + number * (reference["operations"] - 1) // (IN_CONVERGE - 1)
        events = tmp_path / f"events-{number}"
        argv = [str(BIN / "pyinfra"), "-y", "--limit", NAME, "inventory/lab.py", "deploys/site.py"]
        process = start(argv, {EVENTS_VARIABLE: str(events)})
        reached = wait(process, lambda events=events, after=after: operations(events) >= after)
        print(f"cut {number}: after {operations(events)} operations, {'' if reached else 'the converge had ended'}")
        time.sleep(0.05 * (number % 5))
        cut(machine, process)
        assert half_written(contents(machine, list(reference["contents"])), reference["contents"]) == []
    done = converge(machine, env=ENV)
    assert done.code == 0, done.output[-4000:]
    again = converge(machine, env=ENV)
    total = re.search(r"Grand total\s+(\d+)\s+(\S+)\s+(\S+)\s+(\d+)", again.output)
    assert total, again.output
    assert total[1] == total[4], "the second converge after the cuts changes something"
    differs = sorted(set(manifest(machine)) ^ set(reference["manifest"]))
    print(*differs, sep="\n")
    assert differs == []


@pytest.mark.parametrize(("command", "cuts"), [("backup now", IN_BACKUP), ("drill", IN_DRILL)])
def test_a_command_that_is_cut_passes_the_next_time(reference, command: str, cuts: int) -> None:
    """The machine of the test before. What was committed is still there after each cut."""
    machine = lab.find(NAME)
    assert machine, "the converge left no machine"
    on(machine, f"{SQL} -c 'CREATE TABLE IF NOT EXISTS cuts (number int)'")
    argv = [str(BIN / "minipc"), *command.split(), "--inventory", "lab", "--host", NAME]
    began = time.monotonic()
    done = run(*["minipc", *argv[1:]], env=ENV, timeout_s=600)
    assert done.code == 0, done.output[-4000:]
    lasts_s = time.monotonic() - began
    before = int(on(machine, f"{SQL} -c 'SELECT count(*) FROM cuts'"))
    for number in range(cuts):
        on(machine, f"{SQL} -c 'INSERT INTO cuts VALUES ({number})'")
        process = start(argv, {})
        time.sleep(lasts_s * (number + 1) / (cuts + 1))
        cut(machine, process)
        assert on(machine, f"timeout 60 sh -c \"until {SQL} -c 'SELECT count(*) FROM cuts'; do sleep 0.5; done\" 2>&1")
        assert int(on(machine, f"{SQL} -c 'SELECT count(*) FROM cuts'")) == before + number + 1
        done = run(*["minipc", *argv[1:]], env=ENV, timeout_s=600)
        assert done.code == 0, done.output[-4000:]
    assert on(machine, "systemctl --failed --no-legend").strip() == ""


def start(argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | ENV | env,
    )


def wait(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> bool:
    """Wait until something is so. Return False if the process ended before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    return True
