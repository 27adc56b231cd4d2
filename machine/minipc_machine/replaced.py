"""Stop serving when another machine has replaced this one: replaced.

    replaced            ask the off-site host; stop serving, or serve again
    replaced --serve    serve again, whatever the off-site host says, and ask no more

A rebuild revokes the key of the lost machine, and lists it on the off-site host. The SSH server there shows this list
before any login, and its host key proves where the list comes from. Only `minipc rebuild` and `minipc stolen` write it.
So a machine whose key was renewed for another reason, or that does not reach the off-site host, serves on. A converge
gives a machine the present key: then it serves again.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from minipc_machine import schema
from minipc_machine.files import write_file
from minipc_machine.metrics import Gauge, write_metrics
from minipc_machine.processes import run
from minipc_machine.program import EXIT_PASS, FailedError, say

SETTINGS = Path("/etc/minipc/backups/replaced.json")
KNOWN_HOSTS = Path("/etc/pgbackrest/known_hosts")
# When this machine was replaced, and its key then. It also counts after a reboot without the off-site host.
MARK = Path("/var/lib/minipc/replaced")
MESSAGE = Path("/run/motd.d/minipc-replaced")
# The key of a machine that is being rebuilt may be an earlier one.
REBUILDING = Path("/var/lib/minipc/rebuild-unfinished")
PROC = Path("/proc")
PATIENCE_S, STOP_S = 15, 300
ACCOUNT = "fenced"
# What serves, sends messages, or writes elsewhere; services and their timers are in the settings.
UNITS = (
    "caddy*.service",
    "k3s*.service",
    "prometheus-alertmanager.service",
    "minipc-dns.timer",
    "minipc-heartbeat.timer",
    "minipc-backup-*.timer",
    "minipc-drill.timer",
)
TEXT = """
This machine was replaced: a rebuild revoked its key for the off-site host, which it noticed on {date}.
It serves nothing. Its ingress, services and alerts are stopped, and its network is closed but for SSH.
Its data is untouched. If it is the right machine, run `minipc apply`, which gives it the present key.
Without a controller: /usr/local/lib/minipc/replaced --serve

"""
TABLE = """
table inet minipc_replaced
delete table inet minipc_replaced
table inet minipc_replaced {{
    chain input {{
        type filter hook input priority -10; policy drop;
        iifname "lo" accept
        meta l4proto {{ icmp, icmpv6 }} accept
        tcp dport {{ {ssh} }} accept
        udp dport {{ {udp} }} accept
        meta l4proto {{ tcp, udp }} th sport {{ {asked} }} accept
    }}
    chain forward {{
        type filter hook forward priority -10; policy drop;
    }}
    chain output {{
        type filter hook output priority -10; policy drop;
        oifname "lo" accept
        meta l4proto {{ icmp, icmpv6 }} accept
        tcp sport {{ {ssh} }} accept
        udp sport {{ {udp} }} accept
        meta l4proto {{ tcp, udp }} th dport {{ {asked} }} accept
    }}
}}
"""


@dataclass(frozen=True)
class ReplacedSettings:
    """How the off-site host is asked, and what is left open.

    Attributes:
        key: public key of this machine for the off-site host.
        address, port: of the SSH server there.
        ssh: TCP ports of the operator.
        vpn: UDP port of the VPN.
        services: names of the services that run here.
    """

    key: str
    address: str
    port: int
    ssh: list[int]
    vpn: int
    services: list[str]


def main(arguments: list[str]) -> int:
    """Ask, and act upon the answer. Raises FailedError if a program fails that is needed for it."""
    settings = schema.load(ReplacedSettings, SETTINGS)
    if arguments == ["--serve"]:
        serve(settings)
        # The next converge enables both again.
        run(["systemctl", "disable", "--now", "minipc-replaced.timer", "minipc-replaced.service"], STOP_S)
        return EXIT_PASS
    if REBUILDING.exists():
        return EXIT_PASS
    if MARK.exists():
        if _mark()[1] != settings.key:
            serve(settings)
    elif settings.key in revoked_keys(settings):
        write_file(MARK, f"{time.time():.0f} {settings.key}\n")
    if MARK.exists():
        stop(settings)
    gauge = Gauge("minipc_machine_replaced", "Whether another machine has replaced this one.", [({}, MARK.exists())])
    write_metrics("replaced", [gauge])
    return EXIT_PASS


def revoked_keys(settings: ReplacedSettings) -> list[str]:
    """Return the lines that the off-site host shows before a login; none if it cannot be reached or is another one."""
    options = (
        "BatchMode=yes",
        "ConnectTimeout=5",
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={KNOWN_HOSTS}",
        "GlobalKnownHostsFile=/dev/null",
        "HostKeyAlgorithms=ssh-ed25519",
        "IdentityFile=none",
        "PubkeyAuthentication=no",
        "UpdateHostKeys=no",
    )
    asking = ["ssh", "-F", "none", "-T", "-p", str(settings.port), *(f"-o{each}" for each in options)]
    # Nobody logs in with this name: it ends with 255. The list is on standard error.
    argv = ["sh", "-c", 'exec "$@" 2>&1', "sh", *asking, f"{ACCOUNT}@{settings.address}"]
    try:
        return [line.strip() for line in run(argv, PATIENCE_S, accepted=(255,)).splitlines()]
    except FailedError as error:
        say(str(error))
        return []


def stop(settings: ReplacedSettings) -> None:
    """Close the network but for SSH, stop what serves, and say so at the next login."""
    asked = {53, 67, 123, 547, settings.port}
    ports = {"ssh": settings.ssh, "udp": [settings.vpn], "asked": sorted(asked)}
    table = TABLE.format(**{name: ", ".join(map(str, each)) for name, each in ports.items()})
    run(["nft", "-f", "-"], PATIENCE_S, stdin=table)
    units = [*UNITS, *(f"minipc-{service}-*" for service in settings.services)]
    found = [line.split() for line in _systemctl("list-units", "--all", *units).splitlines()]
    loaded = [unit for unit, load, *_ in found if load == "loaded"]
    if loaded:
        run(["systemctl", "stop", "--", *loaded], STOP_S)
    # Pods outlive K3s.
    for process in PROC.glob("[0-9]*"):
        if _in_a_pod(process):
            os.kill(int(process.name), signal.SIGKILL)
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(float(_mark()[0])))
    write_file(MESSAGE, TEXT.format(date=date))


def serve(settings: ReplacedSettings) -> None:
    """Open the network and start what is enabled."""
    MARK.unlink(missing_ok=True)
    MESSAGE.unlink(missing_ok=True)
    run(["nft", "-f", "-"], PATIENCE_S, stdin="table inet minipc_replaced\ndelete table inet minipc_replaced\n")
    units = [*UNITS, *(f"minipc-{service}-*" for service in settings.services)]
    files = _systemctl("list-unit-files", "--state=enabled,generated", *units).splitlines()
    enabled = [line.split()[0] for line in files]
    if enabled:
        run(["systemctl", "start", "--no-block", "--", *enabled], STOP_S)


def _mark() -> tuple[str, str]:
    """Return when this machine was replaced, epoch seconds, and its key at that time."""
    since, _, key = MARK.read_text(encoding="utf-8").strip().partition(" ")
    return since, key


def _systemctl(verb: str, *words: str) -> str:
    return run(["systemctl", verb, "--plain", "--no-legend", *words], PATIENCE_S)


def _in_a_pod(process: Path) -> bool:
    try:
        return "/kubepods" in (process / "cgroup").read_text(encoding="utf-8")
    except OSError:
        return False
