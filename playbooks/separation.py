"""The proof of the two doors: who reaches what, from each side, IPv4 and IPv6, with canaries that would answer.

minipc prove separation [--short]

At rest, after our rules were loaded again and the cluster's have changed, during a converge through the VPN, and after
a reboot.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from minipc import lab
from minipc.addresses import bracketed
from minipc.components import deploy_files
from minipc.converge import converge
from minipc.display import print_summary, watch
from minipc.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.inventory import Environment, Target, the_target
from minipc.lab import tunnel
from minipc.lab.network import CLIENT_INTERFACE
from minipc.records import Door, Record
from minipc.remote import describe, on, versions
from minipc.run import PhaseFailedError, Run
from minipc.secrets import Secret
from minipc.secrets.generate import wireguard_private_key
from minipc.separation import canaries
from minipc.separation.doors import NOTABLE, SILENT, judge
from minipc.separation.scan import ALL_PORTS, Place, Scan, Viewpoint, scan
from minipc.variables import LAB_VPN_VARIABLE

IN_OPERATOR = ("ip", "netns", "exec", "operator")
HANDSHAKE_S = 2.5
ANSWER, NO_ANSWER = "handshake", "no answer"
# Listeners on UDP that are no door: DHCP's client, and the cluster's network, which the rules close.
QUIET_UDP = {68, 546, 8472}
BORROWED = "borrowed"
EVERYWHERE: tuple[Place, ...] = ("public", "operator", "vpn")


def prove(environment: Environment, alias: str | None, *, whole: bool) -> Record:
    """Proves it on a machine of the lab, with a record and a report.

    Raises:
        RefusedError: in production: nobody stands on the public side there, and canaries have no place.
    """
    if environment != "lab":
        raise RefusedError(
            "the proof needs clients on both sides and listeners on the machine: it is for the lab",
            "`minipc rehearse --as production` tries your values; from elsewhere: `nmap -Pn -p- ADDRESS`",
        )
    target = the_target(environment, alias)
    machine = lab.find(target.alias)
    facts = describe(target, machine.backend if machine else "nspawn")
    run = Run("separation")
    with watch(run.events):
        try:
            phases(run, target, whole=whole)
            run.versions |= versions(target)
        except PhaseFailedError:
            run.note(f"what was printed: {run.log}")
    record = run.conclude(
        target=facts,
        group=environment,
        runtime=target.settings.workload.runtime,
        converge_phase="",
        overrides=[],
        components=None,
    )
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    return record


def phases(run: Run, target: Target, *, whole: bool) -> None:
    """The whole proof, a phase for each moment; what was seen goes into `run.doors`."""
    proof = Proof(run, target)
    try:
        with run.phase("at rest", "all ports, from all sides") as say:
            say(proof.look("at rest", whole=EVERYWHERE, handshakes=True))
        with run.phase("after a reload", "and the cluster's rules have changed") as say:
            proof.reload()
            say(proof.look("after a reload", whole=["public"]))
        with run.phase("during a converge", "through the VPN, rules replaced meanwhile") as say:
            say(proof.look_during_a_converge(changing=True))
        if whole:
            with run.phase("after a reboot") as say:
                lab.reboot(proof.machine)
                proof.prepare()
                say(proof.look("after a reboot", whole=EVERYWHERE, handshakes=True))
    finally:
        proof.clean()


def short(run: Run, target: Target) -> str:
    """The same in less than a minute: one converge through the VPN, scanned meanwhile. Returns a sentence.

    Raises:
        MinipcError: a door is not as expected, or the converge failed.
    """
    proof = Proof(run, target)
    try:
        proof.reload()
        first = proof.look("after a reload", whole=["public"], handshakes=True)
        return f"{first}; {proof.look_during_a_converge(changing=False)}"
    finally:
        proof.clean()


class Proof:
    """A machine, the places from which it is looked at, and the canaries on it."""

    def __init__(self, run: Run, target: Target) -> None:
        machine = lab.find(target.alias)
        if machine is None:
            raise CouldNotVerifyError(f"{target.alias} is no machine of the lab", "minipc lab list")
        self.run, self.target, self.machine = run, target, machine
        vpn = target.settings.vpn
        self.views = [
            _view("public", machine.public_ipv4, machine.public_ipv6, ("ip", "netns", "exec", "public")),
            _view("operator", machine.operator_ipv4, machine.operator_ipv6, IN_OPERATOR),
            _view("vpn", vpn.address, vpn.address_ipv6, IN_OPERATOR),
        ]
        self.prepare()

    def prepare(self) -> None:
        """Canaries on the machine, and the tunnel."""
        self.canaries = canaries.place(self.target, self.machine.public_ipv4, self.machine.public_ipv6)
        name = tunnel.up(self.machine)
        if not tunnel.wait_for_handshake(name, 30):
            raise CouldNotVerifyError(f"{self.target.alias}: no handshake through the VPN", "minipc verify vpn")
        self.listening = {
            int(line.split()[3].rpartition(":")[2]) for line in on(self.target, "ss -Hltn").splitlines() if line
        }

    def clean(self) -> None:
        """Nothing stays on the machine."""
        for which in ("try4", "try6"):
            tunnel.down(self.machine, which)
        canaries.remove(self.target)

    def reload(self) -> None:
        """Our rules are loaded anew, and the cluster's change after them."""
        on(self.target, "systemctl reload minipc-firewall")
        canaries.disturb_the_cluster(self.target)

    @property
    def notable(self) -> set[int]:
        """The ports that a quick look tries: those below 1024, those known, and all that something listens on."""
        return {*range(1, 1024), *NOTABLE, *self.listening, *self.canaries.ports}

    def look(
        self,
        moment: str,
        *,
        sides: Sequence[Place] = EVERYWHERE,
        whole: Sequence[Place] = (),
        handshakes: bool = False,
    ) -> str:
        """Scans from the sides at once; the rows go into the run. Returns a sentence.

        Args:
            whole: from these sides all ports, from the others the notable ones.

        Raises:
            MinipcError: a door is not as expected.
        """
        views = [view for view in self.views if view.side in sides]
        wanted = [(view, family) for view in views for family in view.addresses]
        notable = self.notable

        def one(each: tuple[Viewpoint, str]) -> Scan:
            view, family = each
            return scan(view, view.addresses[family], None if view.side in whole else notable)

        with ThreadPoolExecutor(len(wanted)) as pool:
            found = list(pool.map(one, wanted))
        rows: list[Door] = []
        for view in views:
            scans = {family: seen for (place, family), seen in zip(wanted, found, strict=True) if place is view}
            tried = ALL_PORTS if view.side in whole else len(notable)
            settings, behind = self.target.settings, self.canaries.ports
            rows += judge(moment, view.side, scans, settings, self.listening, behind, tried)
        if handshakes:
            rows += [*self._handshakes(moment), self._listeners(moment), self._borrowed(moment)]
        self.run.doors += rows
        wrong = [row for row in rows if not row.ok]
        if wrong:
            raise MinipcError(
                f"{len(wrong)} of {len(rows)} doors are not as expected: {wrong[0].reason}",
                "the report shows all of them; `nft list ruleset` on the machine, what lets them through",
            )
        return f"{moment}: {len(rows)} doors as expected"

    def look_during_a_converge(self, *, changing: bool) -> str:
        """Scans from the public side again and again, for as long as a converge through the VPN takes.

        Args:
            changing: the converge replaces the firewall's rules, and another one puts them back.

        Raises:
            MinipcError: a door is not as expected, or the converge failed.
        """
        failed: list[BaseException] = []
        ended = [0.0]

        def work() -> None:
            try:
                if changing:
                    self._converge("--data", f"firewall_client_connections={self._other_limit()}")
                self._converge()
            except BaseException as error:
                failed.append(error)
            ended[0] = time.monotonic()

        began = time.monotonic()
        worker = threading.Thread(target=work)
        worker.start()
        looks = 0
        said = ""
        try:
            while worker.is_alive():
                said, looks = self.look("during a converge", sides=("public",)), looks + 1
        finally:
            worker.join()
        if failed:
            raise failed[0]
        self.run.doors[:] = _distinct(self.run.doors)
        return f"{said}, {looks} times in the {ended[0] - began:.0f} s of a converge through the VPN"

    def _converge(self, *options: str) -> None:
        converge(
            "lab",
            deploy_files(),
            log=self.run.log,
            events=self.run.events,
            limit=self.target.alias,
            options=options,
            env={LAB_VPN_VARIABLE: "1"},
            prefix=IN_OPERATOR,
        )

    def _other_limit(self) -> int:
        return self.target.settings.firewall.client_connections - 1

    def _handshakes(self, moment: str) -> list[Door]:
        """With the right key, and with a wrong one; to both of the machine's public addresses."""
        public = self.views[0].addresses
        strange = Secret("vpn.stranger", wireguard_private_key())
        tries = {}
        for family, endpoint in public.items():
            tunnel.down(self.machine, f"try{family[-1]}")
            tries[family] = tunnel.up(self.machine, which=f"try{family[-1]}", key=strange, endpoint=endpoint)
        right = {}
        # Its own tunnel, made anew: with two at once the machine would answer one of them only. IPv4 last: it stays.
        for family, endpoint in reversed(public.items()):
            right[family] = self._is_answered(endpoint) or self._is_answered(endpoint)
        wrong = {family: tunnel.wait_for_handshake(name, HANDSHAKE_S) for family, name in tries.items()}
        for family in tries:
            tunnel.down(self.machine, f"try{family[-1]}")
        return [
            self._knocked(moment, "the right key", ANSWER, right),
            self._knocked(moment, "a wrong key", NO_ANSWER, wrong),
        ]

    def _is_answered(self, endpoint: str) -> bool:
        """Whether the right key gets in. Asked twice: a lost datagram says nothing of the door."""
        tunnel.down(self.machine)
        return tunnel.wait_for_handshake(tunnel.up(self.machine, endpoint=endpoint), 4 * HANDSHAKE_S)

    def _knocked(self, moment: str, key: str, want: str, answered: dict[str, bool]) -> Door:
        seen = {family: ANSWER if answer else NO_ANSWER for family, answer in answered.items()}
        words = want if set(seen.values()) == {want} else ", ".join(f"{each} {seen[each]}" for each in sorted(seen))
        port = f"{self.target.settings.vpn.port}/udp"
        return _row(moment, "public", "IPv4 and IPv6", port, f"WireGuard, with {key}", want, words)

    def _listeners(self, moment: str) -> Door:
        """UDP can't be scanned: a closed port and WireGuard are both silent. So: who listens at all."""
        lines = on(self.target, "ss -Hlun").splitlines()
        heard = [line.split()[3].rpartition(":") for line in lines]
        found = {int(port) for address, _, port in heard if not address.strip("[]").startswith(("127.", "::1"))}
        doors = {self.target.settings.vpn.port, *self.target.settings.firewall.public_udp}
        # The canary is one of them: that it doesn't answer outside is for tests/verify/test_firewall.py.
        found -= QUIET_UDP | {self.canaries.listener, 443} - doors
        want, seen = (", ".join(map(str, sorted(ports))) or "none" for ports in (doors, found))
        return _row(
            moment, "machine", "IPv4 and IPv6", "all listeners, udp", "`ss -Hlun`, loopback left out", want, seen
        )

    def _borrowed(self, moment: str) -> Door:
        """An operator's address that arrives on the public side: it must not open SSH."""
        public = self.views[0]
        sources = {
            "IPv4": re.sub(r"\d+$", "254", self.machine.operator_ipv4),
            "IPv6": re.sub(r"[^:]+$", "fe", self.machine.operator_ipv6),
        }
        count = "; ".join(
            f"ip{'6' if family == 'IPv6' else ''} saddr {source} tcp dport 22 counter"
            for family, source in sources.items()
        )
        table = f"""table inet {BORROWED} {{
            chain arrived {{ type filter hook prerouting priority -290; {count}; }}
            chain passed {{ type filter hook input priority 10; {count}; }}
        }}"""
        on(self.target, f"nft delete table inet {BORROWED} 2>/dev/null; printf %s {shlex.quote(table)} | nft -f -")
        try:
            for family, source in sources.items():
                flags = [*(["nodad"] if family == "IPv6" else []), "valid_lft", "5", "preferred_lft", "5"]
                public.run("ip", "address", "replace", source, "dev", CLIENT_INTERFACE, *flags)
                url = f"http://{bracketed(public.addresses[family])}:22"
                public.run("curl", "--silent", "--max-time", "1", "--interface", source, url)
            listing = on(self.target, f"nft list table inet {BORROWED}")
        finally:
            on(self.target, f"nft delete table inet {BORROWED}")
        packets = [int(each) for each in re.findall(r"counter packets (\d+)", listing)]
        arrived, passed = packets[:2], packets[2:]
        seen = SILENT if all(arrived) and not any(passed) else f"{arrived} packets arrived, {passed} got through"
        return _row(moment, "public", "IPv4 and IPv6", "22/tcp", "SSH, from an operator's address", SILENT, seen)


def _view(side: Place, ipv4: str, ipv6: str, prefix: tuple[str, ...]) -> Viewpoint:
    return Viewpoint(side, {"IPv4": ipv4, "IPv6": ipv6}, prefix)


def _row(
    moment: str, side: Place | Literal["machine"], families: str, port: str, what: str, want: str, seen: str
) -> Door:
    return Door(
        moment=moment, side=side, families=families, port=port, what=what, expected=want, seen=seen, ok=want == seen
    )


def _distinct(doors: Collection[Door]) -> list[Door]:
    """Several looks at one moment: each row once, a wrong one rather than a right one."""
    kept: dict[tuple[str, str, str, str], Door] = {}
    for door in doors:
        key = (door.moment, door.side, door.port, door.what)
        if key not in kept or not door.ok:
            kept[key] = door
    return list(kept.values())
