"""Run the short rehearsal on an emulated machine: boot loader, kernel, firewall and VPN, through a reboot."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.evidence.run import Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote.inventory import Target
from minipc.remote.queries import describe, on, versions
from minipc.verification.runner import verify
from rehearsal import lab
from rehearsal.lab import tunnel

if TYPE_CHECKING:
    from rehearsal.machines import RehearsalMachines

COMPONENTS = ("host", "firewall", "vpn")
TUNNEL_WITHIN_S = 60.0


def rehearse(run: Run, machines: RehearsalMachines, converge_phase: str) -> None:
    """Rehearse only what needs a separate kernel, because emulation makes everything else too slow.

    Raises:
        PhaseFailedError: a phase failed; it names the phase.
    """
    run.not_exercised(
        "everything except " + ", ".join(COMPONENTS),
        "KVM does not work on this controller: an emulated machine is six to nine times slower",
    )
    name = machines.options.name
    with run.phase("boot", "a blank disk with the image on it: firmware, boot loader, kernel") as detail:
        target = machines.enrol(name)
        machines.description = describe(target, machines.options.backend)
        detail(f"Linux {machines.description.kernel}")
    with run.phase(converge_phase, ", ".join(COMPONENTS)):
        converge(LAB, deploy_files(COMPONENTS), log=run.log, events=run.events, limit=target.alias)
    with run.phase("reboot", "the configuration must come up at boot"):
        lab.reboot(machines.by_name[name])
    with run.phase("tunnel", "WireGuard in the machine's kernel, after the reboot") as detail:
        detail(_prove_tunnel(machines.by_name[name], target))
    run.versions |= versions(target)
    with run.phase("verify", "from both sides") as detail:
        detail(verify(LAB, target, COMPONENTS, events=run.events, log=run.log).demand().summary)


def _prove_tunnel(machine: lab.Machine, target: Target) -> str:
    """Prove a WireGuard handshake from the public side, and SSH through the tunnel. Returns a sentence.

    Raises:
        MinipcError: there was no handshake, or SSH did not answer.
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
        scanned_keys = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    finally:
        tunnel.down(machine)
    if machine.host_key not in scanned_keys:
        raise MinipcError(
            f"the machine's SSH does not answer at {address}, through the tunnel",
            f"run it with --keep, then `minipc lab console {machine.name}`: `nft list ruleset`, `systemctl status ssh`",
        )
    return "handshake, and SSH with the machine's own host key" + (", in the kernel" if in_kernel else "")
