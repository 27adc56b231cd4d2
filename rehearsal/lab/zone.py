"""Serve a public DNS zone in a rehearsal: a provider's API, and a name server that answers with its records.

Both run in the namespace `public`: machines reach the API on the public side, and the client there finds the service by
its name. Caches are not exercised: the client asks the name server each time. On the internet a cutover takes up to
the TTL of the records longer.

    with zone.serve("rehearsal", "example.org", token) as served: …
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minipc.core.errors import MinipcError
from minipc.core.files import write_atomic
from minipc.core.paths import ROOT, state_dir
from rehearsal.doubles.cloudflare import FakeCloudflare
from rehearsal.doubles.name_server import Address
from rehearsal.doubles.name_server import serve as serve_names
from rehearsal.lab.machine import ProcessId, load_all
from rehearsal.lab.network import CLIENT_HOST, PUBLIC

AUTOMATIC_TTL, AUTOMATIC_TTL_S = 1, 300
_START_S = 20


@dataclass(frozen=True)
class Zone:
    """A zone that is served.

    Attributes:
        serves: name of the machine that it is for. A machine called `NAME-…` may replace that machine.
        zone: its domain.
        nameserver: address of the name server, on the loopback of the namespace `public`.
    """

    serves: str
    zone: str
    api_url: str
    address_url: str
    nameserver: str
    process: ProcessId

    def data(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the `dns_*` settings of a machine with these public names; those outside the zone have no record."""
        inside = [name for name in names if name == self.zone or name.endswith(f".{self.zone}")]
        return {
            "dns_provider": "cloudflare",
            "dns_zone": self.zone,
            "dns_records": [{"name": name, "type": "A"} for name in inside],
            # The machine reports its address, and its timer updates the record.
            "dns_follow": True,
            "dns_ipv4": None,
            "dns_ipv6": None,
            "dns_api_url": self.api_url,
            "dns_address_url": self.address_url,
        }


@contextmanager
def serve(name: str, zone: str, token: str, *, keep: bool = False) -> Iterator[Zone]:
    """Serve an empty zone while the block lasts, or with `keep` until its machines are removed.

    Args:
        name: name of the machine whose public name is in the zone.
        token: token that the API requires.

    Raises:
        MinipcError: it could not be started.
    """
    number = os.getpid()
    nameserver = f"127.77.{number >> 8 & 255}.{number & 255}"
    argv = ["ip", "netns", "exec", PUBLIC.name, sys.executable, "-m", "rehearsal.lab.zone"]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        start_new_session=True,
    )
    served: Zone | None = None
    try:
        settings = {"serves": name, "zone": zone, "token": token, "nameserver": nameserver, "keep": keep}
        addresses = _start_serving(process, json.dumps(settings))
        identity = ProcessId.of(process.pid)
        if not addresses or identity is None:
            raise MinipcError(
                "the lab's public zone could not be served",
                "check that no other program runs in the namespace: `ip netns pids public`",
            )
        served = Zone(serves=name, zone=zone, nameserver=nameserver, process=identity, **json.loads(addresses))
        write(served)
        yield served
    finally:
        if not keep or served is None:
            process.kill()
            process.wait()
            for file in (f"{name}.json", f"{name}.resolv.conf"):
                (_directory() / file).unlink(missing_ok=True)


def _start_serving(process: subprocess.Popen[str], settings: str) -> str:
    """Send the settings. Returns the addresses as JSON; empty if the process ended or took too long."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    process.stdin.write(f"{settings}\n")
    process.stdin.close()
    timer = threading.Timer(_START_S, process.kill)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def zone_of(name: str) -> Zone | None:
    """Return the zone that contains a machine's public name; None if none is served."""
    for path in sorted(_directory().glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            zone = Zone(**values | {"process": ProcessId(**values["process"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if _is_for(name, zone.serves) and zone.process.is_running():
            return zone
    return None


def _is_for(name: str, serves: str) -> bool:
    return name == serves or name.startswith(f"{serves}-")


def _machines(serves: str) -> list[str]:
    return [machine.name for machine in load_all() if _is_for(machine.name, serves)]


def write(zone: Zone, directory: Path | None = None) -> None:
    """Write the description of a zone, here or into the `zones` directory of another lab."""
    directory = directory or _directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(directory / f"{zone.serves}.json", json.dumps(asdict(zone)).encode())


def hand_over(name: str, state: Path) -> None:
    """Copy the description of a machine's zone to another state directory."""
    zone = zone_of(name)
    if zone:
        write(zone, state / "lab" / "zones")


def as_a_client(zone: Zone | None, *argv: str) -> list[str]:
    """Return a command for the public side that resolves names with the zone, or with the controller's resolver."""
    return ["ip", "netns", "exec", PUBLIC.name, *(resolver(zone) if zone else ()), *argv]


def resolver(zone: Zone) -> tuple[str, ...]:
    """Return the command prefix, within the namespace `public`, by which a program resolves names by the zone."""
    # The mount is the command's own: `ip netns exec` gives it a mount namespace.
    script = f'printf "nameserver {zone.nameserver}\\n" > "$0" && mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ("sh", "-c", script, str(_resolver_file(zone)))


def _resolver_file(zone: Zone) -> Path:
    return _directory() / f"{zone.serves}.resolv.conf"


def _directory() -> Path:
    return state_dir("lab", "zones")


def _main() -> None:
    """Read the settings from stdin, print the addresses, and serve until the parent process has ended."""
    settings = json.loads(sys.stdin.readline())
    provider = FakeCloudflare(host=PUBLIC.ipv4_of(CLIENT_HOST))
    provider.add_zone(settings["zone"], settings["token"])

    def records() -> Sequence[Address]:
        published = [dict(record) for record in provider.zones[settings["zone"]].records]
        return [
            Address(each["name"], each["type"], each["content"], _seconds(each["ttl"]))
            for each in published
            if each["type"] in ("A", "AAAA")
        ]

    serve_names(settings["nameserver"], settings["zone"], records)
    parent = os.getppid()
    with provider:
        print(json.dumps({"api_url": provider.api_url, "address_url": provider.address_url}), flush=True)
        while os.getppid() == parent or (settings["keep"] and _machines(settings["serves"])):
            time.sleep(1)


def _seconds(ttl: int) -> int:
    return AUTOMATIC_TTL_S if ttl == AUTOMATIC_TTL else ttl


if __name__ == "__main__":
    _main()
