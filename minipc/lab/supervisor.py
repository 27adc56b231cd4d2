"""The process that *is* a machine on the controller: `python -m minipc.lab.supervisor DIRECTORY`.

`nspawn.start` starts it as the first process of a new pid namespace and in a mount namespace of its own. It mounts the
machine's root there, gives it its identity once, and boots it again whenever it reboots. When it dies, for whatever
reason, the kernel ends every process of the machine and drops every mount, loop device and interface with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from minipc.errors import MinipcError
from minipc.lab import cgroups, debs, identity, network, nspawn
from minipc.lab.machine import Machine, load
from minipc.lab.mounts import mount_root
from minipc.lab.shell import call, clean_environment

REBOOT = 133  # systemd-nspawn --keep-unit exits with it when the machine asked for a reboot

# What K3s finds on a real machine and not in a container: mounts that propagate to pods, and a kernel log to watch.
K3S_UNIT = """\
[Unit]
Description=Lab: what K3s expects of a machine
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
    """One run of the machine, from power-on until it stops. Returns nspawn's exit code."""
    entrances = cgroups.enter_boot(subject.name, nspawn.first_uid(subject))
    process = subprocess.Popen(
        ["sh", "-ec", cgroups.enter_command(entrances) + 'exec "$@"', "sh", *nspawn.nspawn_command(subject, root)],
        stdin=subprocess.DEVNULL,
        env={
            **clean_environment(),
            **nspawn.nspawn_environment(subject, unified_controller=cgroups.is_unified()),
        },
    )
    threading.Thread(target=plug_in, args=(subject, process), daemon=True).start()
    return process.wait()


def plug_in(subject: Machine, process: subprocess.Popen[bytes]) -> None:
    """Connect both interfaces as soon as nspawn has made them."""
    for side in network.SIDES:
        while not network.attach(network.cable(subject.index, side), side) and process.poll() is None:
            time.sleep(0.005)


def give_identity(subject: Machine, root: Path) -> None:
    """Name, keys and addresses, once in the life of the machine's disk: later changes are the machine's own."""
    done = root.parent / "rw" / "has-identity"
    if done.exists():
        return
    files = identity.files(subject)
    if subject.k3s:
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
    if subject.k3s:
        call("systemctl", f"--root={root}", "--quiet", "enable", "lab-k3s.service")
    done.touch()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
