"""Scan the ports of a machine from one of its sides, with nmap."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from minipc.core.errors import CouldNotVerifyError

ALL_PORTS = 65535
# Minimum packets per second: without it, dropped packets slow nmap down. The whole range takes ten seconds.
RATE = 12_000
LIMIT_S = 240


Place = Literal["public", "operator", "vpn"]


@dataclass(frozen=True)
class Viewpoint:
    """A side, and the machine's addresses on that side.

    Attributes:
        addresses: by family, "IPv4" and "IPv6".
        prefix: command prefix that runs a program on that side.
    """

    side: Place
    addresses: dict[str, str]
    prefix: tuple[str, ...] = ()

    def run(self, *argv: str, stdin: str = "", timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        """Run a program on that side."""
        return subprocess.run([*self.prefix, *argv], input=stdin, capture_output=True, text=True, timeout=timeout_s)


@dataclass(frozen=True)
class Scan:
    """The result: the open ports, and the states of all others ("filtered": no answer, "closed": refused)."""

    open: frozenset[int]
    others: frozenset[str]

    def state(self, port: int) -> str:
        """Return "open", or the states of the ports that are not open."""
        if port in self.open:
            return "open"
        return self.rest

    @property
    def rest(self) -> str:
        """Return the states of the ports that are not open: "silent", "closed", or both."""
        return " or ".join(sorted({"filtered": "silent"}.get(state, state) for state in self.others)) or "not tried"


def scan(view: Viewpoint, address: str, ports: Collection[int] | None) -> Scan:
    """Scan TCP ports (SYN scan).

    Args:
        ports: None for all 65,535.

    Raises:
        CouldNotVerifyError: nmap failed, or its result contains no port.
    """
    what = ",".join(map(str, sorted(ports))) if ports is not None else "-"
    argv = ["nmap", "-Pn", "-n", "-sS", "-T4", "--max-retries", "1", "--min-rate", str(RATE), "--reason", "-oX", "-"]
    argv += [*(["-6"] if ":" in address else []), f"-p{what}", address]
    try:
        done = view.run(*argv, timeout_s=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise CouldNotVerifyError(
            f"{view.side}: nmap did not end within {LIMIT_S} s",
            "run the command again when the controller is idle",
        ) from None
    if done.returncode:
        raise CouldNotVerifyError(
            f"{view.side}: nmap failed: {done.stderr.strip()[-300:]}", "run `minipc doctor --install`"
        )
    return parse(done.stdout)


def parse(xml: str) -> Scan:
    """Parse nmap's XML. Raise CouldNotVerifyError if it contains no port."""
    tree = ElementTree.fromstring(xml)  # noqa: S314 - nmap's own output
    states: dict[int, str] = {}
    for port in tree.iter("port"):
        state = port.find("state")
        if state is not None:
            states[int(port.attrib["portid"])] = state.attrib["state"]
    others = {each.attrib["state"] for each in tree.iter("extraports")}
    others |= {state for state in states.values() if state != "open"}
    opened = frozenset(port for port, state in states.items() if state == "open")
    if not opened and not others:
        raise CouldNotVerifyError("nmap's result contains no port", "check the machine's address in the inventory")
    return Scan(opened, frozenset(others))
