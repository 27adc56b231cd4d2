"""Supervise a machine on the controller: `python -m rehearsal.lab.supervisor DIRECTORY`.

`nspawn.start` starts it as the first process of a new pid namespace and a new mount namespace. It mounts the machine's
root, writes its identity once, and boots it again after a reboot. When the supervisor ends for any reason, the kernel
ends every process of the machine and removes its mounts, loop device and interfaces.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.process import call, clean_environment
from rehearsal.lab import cgroups, debs, identity, network, nspawn
from rehearsal.lab.machine import Machine, load
from rehearsal.lab.mounts import mount_root

REBOOT = 133  # systemd-nspawn --keep-unit exits with it when the machine asked for a reboot

# K3s needs mounts that propagate to pods, and a kernel log. A real machine has both, a container does not.
K3S_UNIT = """\
[Unit]
Description=Lab: what containers expect of a machine
DefaultDependencies=no
After=systemd-tmpfiles-setup-dev.service
Before=basic.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/mount --make-rshared /
ExecStart=/usr/bin/touch /dev/kmsg
ExecStart=/usr/bin/mount --bind /dev/null /dev/kmsg

[Install]
WantedBy=basic.target
"""


def main(directory: Path) -> int:
    subject = load(directory)
    if subject is None:
        raise MinipcError(f"no machine in {directory}")
    layer = debs.layer_of(subject.name)
    layers = [*([layer] if layer else []), Path(subject.image)]
    root = mount_root(directory, subject.disk, layers, nspawn.first_uid(subject))
    give_identity(subject, root)
    while (code := boot(subject, root)) == REBOOT:
        pass
    return code


def boot(subject: Machine, root: Path) -> int:
    """Run the machine from power-on until it stops. Returns the exit code of nspawn."""
    entrances = cgroups.enter_boot(subject.name, nspawn.first_uid(subject))
    process = subprocess.Popen(
        ["sh", "-ec", cgroups.enter_command(entrances) + 'exec "$@"', "sh", *nspawn.nspawn_command(subject, root)],
        stdin=subprocess.DEVNULL,
        env={
            **clean_environment(),
            **nspawn.nspawn_environment(subject, unified_controller=cgroups.is_unified()),
        },
    )
    threading.Thread(target=attach_cables, args=(subject, process), daemon=True).start()
    return process.wait()


def attach_cables(subject: Machine, process: subprocess.Popen[bytes]) -> None:
    """Attach both interfaces to their bridges as soon as nspawn has created them."""
    for side in network.SIDES:
        while not network.attach(network.cable(subject.index, side), side) and process.poll() is None:
            time.sleep(0.005)


def give_identity(subject: Machine, root: Path) -> None:
    """Write name, keys and addresses once per disk. Later changes by the machine stay."""
    done = root.parent / "rw" / "has-identity"
    if done.exists():
        return
    files = identity.files(subject)
    if subject.runs_containers:
        files["etc/systemd/system/lab-k3s.service"] = (K3S_UNIT, 0o644)
    owner = nspawn.first_uid(subject)
    for name, (text, mode) in files.items():
        path = root / name
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
            os.chown(path.parent, owner, owner)
        path.touch(mode=0o600)
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, owner, owner)
    if subject.runs_containers:
        call("systemctl", f"--root={root}", "--quiet", "enable", "lab-k3s.service")
    done.touch()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
