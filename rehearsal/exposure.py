"""Prove who reaches which port: scan from each side, over IPv4 and IPv6, with canaries that would answer.

minipc prove exposure [--short]

The proof runs at rest, after our rules were reloaded and the cluster's rules changed, during a converge through the
VPN, and after a reboot.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from minipc.config.components import deploy_files
from minipc.core.addresses import bracketed
from minipc.core.environment import LAB, Environment
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.variables import LAB_VPN_VARIABLE
from minipc.evidence.display import watch
from minipc.evidence.records import PortState, Record
from minipc.evidence.run import PhaseFailedError, Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote.inventory import Target, the_target
from minipc.remote.queries import describe, on, versions
from minipc.secrets import Secret
from minipc.secrets.generate import wireguard_private_key
from minipc.verification import canaries
from minipc.verification.exposure import NOTABLE, SILENT, judge
from minipc.verification.port_scan import ALL_PORTS, Place, Scan, Viewpoint, scan
from rehearsal import lab
from rehearsal.lab import tunnel
from rehearsal.lab.network import CLIENT_INTERFACE
from rehearsal.machines import conclude, publish

IN_OPERATOR = ("ip", "netns", "exec", "operator")
HANDSHAKE_S = 2.5
ANSWER, NO_ANSWER = "handshake", "no answer"
# UDP listeners that are not public: the DHCP client, and the cluster's network, which the rules close.
QUIET_UDP = {68, 546, 8472}
SPOOFED = "spoofed"
EVERYWHERE: tuple[Place, ...] = ("public", "operator", "vpn")


def prove(environment: Environment, alias: str | None, *, whole: bool) -> Record:
    """Prove it on a lab machine, with a record and a report.

    Raises:
        RefusedError: in production, where there is no client on the public side and no place for canaries.
    """
    if not environment.has_public_client:
        raise RefusedError(
            "this proof runs only in the lab: it needs clients on both sides and listeners on the machine",
            "`minipc rehearse --as production` tests your settings; from another network run `nmap -Pn -p- ADDRESS`",
        )
    target = the_target(environment, alias)
    machine = lab.find(target.alias)
    description = describe(target, machine.backend if machine else "nspawn")
    run = Run("exposure")
    with watch(run.events):
        try:
            full_proof(run, target, reboot=whole)
            run.versions |= versions(target)
        except PhaseFailedError:
            run.note(f"log: {run.log}")
    record = conclude(run, description, runtime=target.settings.services.runtime)
    publish(run, record)
    return record


def full_proof(run: Run, target: Target, *, reboot: bool) -> None:
    """Run the whole proof with a phase for each moment. The result goes into `run.exposure`."""
    proof = Proof(run, target)
    try:
        with run.phase("at rest", "all ports, from all sides") as detail:
            detail(proof.look("at rest", whole=EVERYWHERE, handshakes=True))
        with run.phase("after a reload", "after the cluster's rules changed") as detail:
            proof.reload()
            detail(proof.look("after a reload", whole=["public"]))
        with run.phase("during a converge", "through the VPN, while rules are replaced") as detail:
            detail(proof.look_during_a_converge(changing=True))
        if reboot:
            with run.phase("after a reboot") as detail:
                lab.reboot(proof.machine)
                proof.prepare()
                detail(proof.look("after a reboot", whole=EVERYWHERE, handshakes=True))
    finally:
        proof.clean()


def short_proof(run: Run, target: Target) -> str:
    """Run a proof of less than a minute: scan during one converge through the VPN. Returns a sentence.

    Raises:
        MinipcError: a port is not as expected, or the converge failed.
    """
    proof = Proof(run, target)
    try:
        proof.reload()
        first = proof.look("after a reload", whole=["public"], handshakes=True)
        return f"{first}; {proof.look_during_a_converge(changing=False)}"
    finally:
        proof.clean()


class Proof:
    """A machine, the viewpoints from which it is scanned, and the canaries on it."""

    def __init__(self, run: Run, target: Target) -> None:
        machine = lab.find(target.alias)
        if machine is None:
            raise CouldNotVerifyError(f"{target.alias} is not a lab machine", "list them with `minipc lab list`")
        self.run, self.target, self.machine = run, target, machine
        vpn = target.settings.vpn
        self.views = [
            _view("public", machine.public_ipv4, machine.public_ipv6, ("ip", "netns", "exec", "public")),
            _view("operator", machine.operator_ipv4, machine.operator_ipv6, IN_OPERATOR),
            _view("vpn", vpn.address, vpn.address_ipv6, IN_OPERATOR),
        ]
        self.prepare()

    def prepare(self) -> None:
        """Place canaries on the machine, bring the tunnel up, and read on which ports the machine listens."""
        self.canaries = canaries.place(self.target, self.machine.public_ipv4, self.machine.public_ipv6)
        name = tunnel.up(self.machine)
        if not tunnel.wait_for_handshake(name, 30):
            raise CouldNotVerifyError(f"{self.target.alias}: no handshake through the VPN", "run `minipc verify vpn`")
        self.listening = {
            int(line.split()[3].rpartition(":")[2]) for line in on(self.target, "ss -Hltn").splitlines() if line
        }

    def clean(self) -> None:
        """Remove the canaries and the extra tunnels."""
        for which in ("try4", "try6"):
            tunnel.down(self.machine, which)
        canaries.remove(self.target)

    def reload(self) -> None:
        """Reload our rules, then change the cluster's rules."""
        on(self.target, "systemctl reload minipc-firewall")
        canaries.disturb_the_cluster(self.target)

    @property
    def notable(self) -> set[int]:
        """Return the ports of a quick scan: those below 1024, the known ones, and all with a listener."""
        return {*range(1, 1024), *NOTABLE, *self.listening, *self.canaries.ports}

    def look(
        self,
        moment: str,
        *,
        sides: Sequence[Place] = EVERYWHERE,
        whole: Sequence[Place] = (),
        handshakes: bool = False,
    ) -> str:
        """Scan from all sides at once and add the rows to the run. Returns a sentence.

        Args:
            whole: scan all ports from these sides, and the notable ones from the others.

        Raises:
            MinipcError: a port is not as expected.
        """
        views = [view for view in self.views if view.side in sides]
        pairs = [(view, family) for view in views for family in view.addresses]
        notable = self.notable

        def scan_pair(pair: tuple[Viewpoint, str]) -> Scan:
            view, family = pair
            return scan(view, view.addresses[family], None if view.side in whole else notable)

        with ThreadPoolExecutor(len(pairs)) as pool:
            results = list(pool.map(scan_pair, pairs))
        rows: list[PortState] = []
        for view in views:
            scans = {
                family: seen for (viewpoint, family), seen in zip(pairs, results, strict=True) if viewpoint is view
            }
            tried = ALL_PORTS if view.side in whole else len(notable)
            settings, canary_ports = self.target.settings, self.canaries.ports
            rows += judge(moment, view.side, scans, settings, self.listening, canary_ports, tried)
        if handshakes:
            rows += [*self._handshakes(moment), self._listeners(moment), self._spoofed(moment)]
        self.run.exposure += rows
        wrong = [row for row in rows if not row.ok]
        if wrong:
            raise MinipcError(
                f"{len(wrong)} of {len(rows)} ports are not as expected: {wrong[0].reason}",
                "the report lists all of them; `nft list ruleset` on the machine shows the rules",
            )
        return f"{moment}: {len(rows)} ports as expected"

    def look_during_a_converge(self, *, changing: bool) -> str:
        """Scan from the public side repeatedly while a converge runs through the VPN. Returns a sentence.

        Args:
            changing: the converge replaces the firewall's rules, and another converge restores them.

        Raises:
            MinipcError: a port is not as expected, or the converge failed.
        """

        def run_converge() -> float:
            if changing:
                other_limit = self.target.settings.firewall.client_connections - 1
                self._converge("--data", f"firewall_client_connections={other_limit}")
            self._converge()
            return time.monotonic()

        started = time.monotonic()
        scans, sentence = 0, ""
        with ThreadPoolExecutor(1) as pool:
            converging = pool.submit(run_converge)
            while not converging.done():
                sentence, scans = self.look("during a converge", sides=("public",)), scans + 1
        seconds = converging.result() - started
        self.run.exposure[:] = _distinct(self.run.exposure)
        return f"{sentence}, {scans} times in the {seconds:.0f} s of a converge through the VPN"

    def _converge(self, *options: str) -> None:
        converge(
            LAB,
            deploy_files(),
            log=self.run.log,
            events=self.run.events,
            limit=self.target.alias,
            options=options,
            env={LAB_VPN_VARIABLE: "1"},
            prefix=IN_OPERATOR,
        )

    def _handshakes(self, moment: str) -> list[PortState]:
        """Try handshakes with the right and with a wrong key, to both public addresses of the machine."""
        public = self.views[0].addresses
        unknown_key = Secret("vpn.stranger", wireguard_private_key())
        wrong_key_tunnels = {}
        for family, endpoint in public.items():
            tunnel.down(self.machine, f"try{family[-1]}")
            which = f"try{family[-1]}"
            wrong_key_tunnels[family] = tunnel.up(self.machine, which=which, key=unknown_key, endpoint=endpoint)
        right = {}
        # The tunnel is created again for each address: the machine answers only one of two with the same key. The IPv4
        # tunnel is last and stays up.
        for family, endpoint in reversed(public.items()):
            right[family] = self._is_answered(endpoint) or self._is_answered(endpoint)
        wrong = {family: tunnel.wait_for_handshake(name, HANDSHAKE_S) for family, name in wrong_key_tunnels.items()}
        for family in wrong_key_tunnels:
            tunnel.down(self.machine, f"try{family[-1]}")
        return [
            self._handshake_row(moment, "the right key", ANSWER, right),
            self._handshake_row(moment, "a wrong key", NO_ANSWER, wrong),
        ]

    def _is_answered(self, endpoint: str) -> bool:
        """Return whether a handshake with the right key succeeds. Callers ask twice, because datagrams get lost."""
        tunnel.down(self.machine)
        return tunnel.wait_for_handshake(tunnel.up(self.machine, endpoint=endpoint), 4 * HANDSHAKE_S)

    def _handshake_row(self, moment: str, key: str, want: str, answered: dict[str, bool]) -> PortState:
        seen = {family: ANSWER if answer else NO_ANSWER for family, answer in answered.items()}
        words = want if set(seen.values()) == {want} else ", ".join(f"{each} {seen[each]}" for each in sorted(seen))
        port = f"{self.target.settings.vpn.port}/udp"
        return _row(moment, "public", "IPv4 and IPv6", port, f"WireGuard, with {key}", want, words)

    def _listeners(self, moment: str) -> PortState:
        """Return a row of all UDP listeners: UDP cannot be scanned, a closed port and WireGuard are both silent."""
        lines = on(self.target, "ss -Hlun").splitlines()
        sockets = [line.split()[3].rpartition(":") for line in lines]
        listening = {int(port) for address, _, port in sockets if not address.strip("[]").startswith(("127.", "::1"))}
        public = {self.target.settings.vpn.port, *self.target.settings.firewall.public_udp}
        # The canary is one of the listeners: tests/verify/test_firewall.py checks that it does not answer outside.
        # Podman's name server answers inside the networks of services; the rules close it to all sides.
        names = {53} if self.target.settings.services.runtime == "podman" else set()
        listening -= QUIET_UDP | names | {self.canaries.listener, 443} - public
        want, seen = (", ".join(map(str, sorted(ports))) or "none" for ports in (public, listening))
        return _row(
            moment, "machine", "IPv4 and IPv6", "all listeners, udp", "`ss -Hlun`, loopback left out", want, seen
        )

    def _spoofed(self, moment: str) -> PortState:
        """Send packets with an operator's address from the public side: they must not open SSH."""
        public = self.views[0]
        sources = {
            "IPv4": re.sub(r"\d+$", "254", self.machine.operator_ipv4),
            "IPv6": re.sub(r"[^:]+$", "fe", self.machine.operator_ipv6),
        }
        count = "; ".join(
            f"ip{'6' if family == 'IPv6' else ''} saddr {source} tcp dport 22 counter"
            for family, source in sources.items()
        )
        table = f"""table inet {SPOOFED} {{
            chain arrived {{ type filter hook prerouting priority -290; {count}; }}
            chain passed {{ type filter hook input priority 10; {count}; }}
        }}"""
        on(self.target, f"nft delete table inet {SPOOFED} 2>/dev/null; printf %s {shlex.quote(table)} | nft -f -")
        try:
            for family, source in sources.items():
                flags = [*(["nodad"] if family == "IPv6" else []), "valid_lft", "5", "preferred_lft", "5"]
                public.run("ip", "address", "replace", source, "dev", CLIENT_INTERFACE, *flags)
                url = f"http://{bracketed(public.addresses[family])}:22"
                public.run("curl", "--silent", "--max-time", "1", "--interface", source, url)
            listing = on(self.target, f"nft list table inet {SPOOFED}")
        finally:
            on(self.target, f"nft delete table inet {SPOOFED}")
        packets = [int(each) for each in re.findall(r"counter packets (\d+)", listing)]
        arrived, passed = packets[:2], packets[2:]
        seen = SILENT if all(arrived) and not any(passed) else f"{arrived} packets arrived, {passed} got through"
        return _row(moment, "public", "IPv4 and IPv6", "22/tcp", "SSH, from an operator's address", SILENT, seen)


def _view(side: Place, ipv4: str, ipv6: str, prefix: tuple[str, ...]) -> Viewpoint:
    return Viewpoint(side, {"IPv4": ipv4, "IPv6": ipv6}, prefix)


def _row(
    moment: str, side: Place | Literal["machine"], families: str, port: str, what: str, want: str, seen: str
) -> PortState:
    return PortState(
        moment=moment, side=side, families=families, port=port, what=what, expected=want, seen=seen, ok=want == seen
    )


def _distinct(rows: Collection[PortState]) -> list[PortState]:
    """Merge repeated scans at one moment: keep each row once, and the wrong one if there is one."""
    kept: dict[tuple[str, str, str, str], PortState] = {}
    for row in rows:
        key = (row.moment, row.side, row.port, row.what)
        if key not in kept or not row.ok:
            kept[key] = row
    return list(kept.values())
