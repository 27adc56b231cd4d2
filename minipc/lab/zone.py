"""A public zone for a rehearsal: a provider's API, and the name server that answers from what the API was told.

Both run in the namespace `public`, as the internet would have them: machines reach the API on the public side, and the
client there finds the service by its name. What it leaves out: caches. The client asks the name server itself each
time; on the internet a cutover takes up to the records' TTL longer.

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

from minipc.errors import MinipcError
from minipc.lab.cloudflare import FakeCloudflare
from minipc.lab.machine import ProcessId, load_all
from minipc.lab.name_server import Address
from minipc.lab.name_server import serve as serve_names
from minipc.lab.network import CLIENT_HOST, PUBLIC
from minipc.paths import ROOT, state_dir

AUTOMATIC_TTL, AUTOMATIC_TTL_S = 1, 300
_START_S = 20


@dataclass(frozen=True)
class Zone:
    """A zone that is served.

    Attributes:
        serves: name of the machine it is for; a machine called `NAME-…` takes its place.
        zone: its domain.
        nameserver: address of the name server, on the loopback of the namespace `public`.
    """

    serves: str
    zone: str
    api_url: str
    address_url: str
    nameserver: str
    process: ProcessId

    def data(self, name: str) -> dict[str, Any]:
        """The settings of a machine whose public name is in this zone."""
        return {
            "dns_provider": "cloudflare",
            "dns_zone": self.zone,
            "dns_records": [{"name": name, "type": "A"}],
            # The machine tells its address itself, and its timer keeps the record in line.
            "dns_follow": True,
            "dns_ipv4": None,
            "dns_ipv6": None,
            "dns_api_url": self.api_url,
            "dns_address_url": self.address_url,
        }


@contextmanager
def serve(name: str, zone: str, token: str, *, keep: bool = False) -> Iterator[Zone]:
    """Serves an empty zone while the block lasts, or with `keep` until its machines are gone.

    Args:
        name: of the machine whose public name it holds.
        token: what the API asks for.

    Raises:
        MinipcError: it could not be started.
    """
    number = os.getpid()
    nameserver = f"127.77.{number >> 8 & 255}.{number & 255}"
    argv = ["ip", "netns", "exec", PUBLIC.name, sys.executable, "-m", "minipc.lab.zone"]
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
        said = _ask(
            process, json.dumps({"serves": name, "zone": zone, "token": token, "nameserver": nameserver, "keep": keep})
        )
        identity = ProcessId.of(process.pid)
        if not said or identity is None:
            raise MinipcError(
                "the lab's public zone could not be served", "is anything else in the namespace `public`?"
            )
        served = Zone(serves=name, zone=zone, nameserver=nameserver, process=identity, **json.loads(said))
        write(served)
        yield served
    finally:
        if not keep or served is None:
            process.kill()
            process.wait()
            for file in (f"{name}.json", f"{name}.resolv.conf"):
                (_directory() / file).unlink(missing_ok=True)


def _ask(process: subprocess.Popen[str], wanted: str) -> str:
    """Tells it what to serve; its answer, empty when it ended or took too long."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    process.stdin.write(f"{wanted}\n")
    process.stdin.close()
    timer = threading.Timer(_START_S, process.kill)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def zone_of(name: str) -> Zone | None:
    """The zone that holds a machine's public name; None when none is served."""
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
    """Makes a zone known: here, or to whoever has that directory as `zones` of its lab."""
    directory = directory or _directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = directory / f".{zone.serves}.new"
    temporary.write_text(json.dumps(asdict(zone)), encoding="utf-8")
    temporary.rename(directory / f"{zone.serves}.json")


def hand_over(name: str, state: Path) -> None:
    """Makes a machine's zone known to another computer, by its state directory."""
    zone = zone_of(name)
    if zone:
        write(zone, state / "lab" / "zones")


def as_a_client(zone: Zone | None, *argv: str) -> list[str]:
    """A command on the public side that finds names by the zone; without one by whatever the controller has."""
    client = ["ip", "netns", "exec", PUBLIC.name]
    if zone is None:
        return [*client, *argv]
    # The mount is the command's own: `ip netns exec` gives it a mount namespace.
    resolver = f'printf "nameserver {zone.nameserver}\\n" > "$0" && mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return [*client, "sh", "-c", resolver, str(_resolver_file(zone)), *argv]


def _resolver_file(zone: Zone) -> Path:
    return _directory() / f"{zone.serves}.resolv.conf"


def _directory() -> Path:
    return state_dir("lab", "zones")


def _main() -> None:
    """In the namespace: reads what to serve from stdin, says where, and serves until whoever started it is gone."""
    wanted = json.loads(sys.stdin.readline())
    provider = FakeCloudflare(host=PUBLIC.ipv4_of(CLIENT_HOST))
    provider.add_zone(wanted["zone"], wanted["token"])

    def records() -> Sequence[Address]:
        shown = [dict(record) for record in provider.zones[wanted["zone"]].records]
        return [
            Address(each["name"], each["type"], each["content"], _seconds(each["ttl"]))
            for each in shown
            if each["type"] in ("A", "AAAA")
        ]

    serve_names(wanted["nameserver"], wanted["zone"], records)
    parent = os.getppid()
    with provider:
        print(json.dumps({"api_url": provider.api_url, "address_url": provider.address_url}), flush=True)
        while os.getppid() == parent or (wanted["keep"] and _machines(wanted["serves"])):
            time.sleep(1)


def _seconds(ttl: int) -> int:
    return AUTOMATIC_TTL_S if ttl == AUTOMATIC_TTL else ttl


if __name__ == "__main__":
    _main()
