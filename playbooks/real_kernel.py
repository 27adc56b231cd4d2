"""The short rehearsal, on an emulated machine: boot loader, kernel, firewall and VPN of its own, through a reboot."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from minipc import lab, records
from minipc.components import deploy_files
from minipc.converge import converge
from minipc.errors import MinipcError
from minipc.inventory import Target
from minipc.lab import tunnel
from minipc.remote import describe, on, versions
from minipc.run import Run
from minipc.verification import verify

if TYPE_CHECKING:
    from playbooks.rehearse import Cast

COMPONENTS = ("host", "firewall", "vpn")
TUNNEL_WITHIN_S = 60.0


def rehearse(run: Run, cast: Cast, converge_phase: str) -> records.Target:
    """What only a kernel of its own can show, where emulation makes everything else too slow.

    Raises:
        PhaseFailedError: says which phase.
    """
    run.not_exercised(
        "everything but " + ", ".join(COMPONENTS),
        "KVM does not work on this controller: an emulated machine is six to nine times slower",
    )
    name = cast.options.name
    with run.phase("boot", "a blank disk with the image on it: firmware, boot loader, kernel") as detail:
        target = cast.enrol(name)
        told = describe(target, cast.options.backend)
        detail(f"Linux {told.kernel}")
    with run.phase(converge_phase, ", ".join(COMPONENTS)):
        converge("lab", deploy_files(COMPONENTS), log=run.log, events=run.events, limit=target.alias)
    with run.phase("reboot", "what was configured must come up by itself"):
        lab.reboot(cast.machines[name])
    with run.phase("tunnel", "WireGuard of the machine's own kernel, after the reboot") as detail:
        detail(_prove_tunnel(cast.machines[name], target))
    run.versions |= versions(target)
    with run.phase("verify", "from both sides") as detail:
        detail(verify("lab", target, COMPONENTS, events=run.events, log=run.log).demand().summary)
    return told


def _prove_tunnel(machine: lab.Machine, target: Target) -> str:
    """A handshake from the public side, and SSH through it.

    Raises:
        MinipcError: there is none.
    """
    in_kernel = on(target, "ip -details link show wg0 | grep -c wireguard || true") != "0"
    name = tunnel.up(machine)
    try:
        if not tunnel.wait_for_handshake(name, TUNNEL_WITHIN_S):
            raise MinipcError(
                f"no handshake with {machine.public_ipv4} within {TUNNEL_WITHIN_S:.0f} s",
                f"run it with --keep, then `minipc lab console {machine.name}`: `systemctl status minipc-vpn`",
            )
        address = tunnel.addresses(machine.index, 1)[0]
        argv = ["ip", "netns", "exec", "operator", "ssh-keyscan", "-T", "30", "-t", "ed25519", address]
        seen = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    finally:
        tunnel.down(machine)
    if machine.host_key not in seen:
        raise MinipcError(
            f"the machine's SSH does not answer at {address}, through the tunnel",
            f"run it with --keep, then `minipc lab console {machine.name}`: `nft list ruleset`, `systemctl status ssh`",
        )
    return "handshake, and SSH with the machine's own host key" + (", in the kernel" if in_kernel else "")
