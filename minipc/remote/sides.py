"""Sides: the places from which clients reach a machine, with their addresses and commands."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from minipc.core.addresses import bracketed
from minipc.core.polling import wait_until


@dataclass(frozen=True)
class Side:
    """A place from which a machine is reached.

    Attributes:
        name: "public", "operator" or "vpn".
        ipv4: address of the machine on this side.
        ipv6: the same; None if it is not known.
        prefix: command prefix that starts a program on this side, such as `ip netns exec public`.
        resolver: prefix that comes after `prefix` and makes the public name resolve as it does for users. Empty: the
            caller has to say to which address the name leads.
        connect: command that connects a client on this side, for the VPN; empty if nothing has to be done.
    """

    name: str
    ipv4: str
    ipv6: str | None = None
    prefix: tuple[str, ...] = ()
    resolver: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()

    @property
    def addresses(self) -> list[str]:
        """Return the machine's known addresses on this side."""
        return [address for address in (self.ipv4, self.ipv6) if address]

    def run(self, *argv: str, stdin: str = "", timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        """Run a program on this side."""
        return subprocess.run([*self.prefix, *argv], input=stdin, capture_output=True, text=True, timeout=timeout_s)

    def reaches(self, port: int, within_s: float = 3) -> bool:
        """Return whether the machine accepts a TCP connection to the port within the time."""

        def connects() -> bool:
            return self.run("bash", "-c", f"timeout 2 bash -c '</dev/tcp/{self.ipv4}/{port}'").returncode == 0

        return wait_until(connects, within_s=within_s)

    @property
    def finds_names(self) -> bool:
        """Return whether DNS names resolve here as they do for users."""
        return not self.prefix or bool(self.resolver)

    def http_status(
        self, domain: str, path: str, *, address: str | None = None, verify: bool = False, limit_s: float = 5
    ) -> str:
        """Return the HTTP status of `https://DOMAIN/PATH` for a user on this side; "000" if there is no answer.

        Args:
            address: where the name leads; None resolves it.
            verify: verify the certificate as well.
            limit_s: longest wait for the answer, seconds.
        """
        argv = [*self.resolver, "curl", "--silent", "--noproxy", "*", "--max-time", f"{limit_s:g}"]
        argv += ["--output", "/dev/null", "--write-out", "%{http_code}"]
        if not verify:
            argv.append("--insecure")
        if address:
            argv += ["--resolve", f"{domain}:443:{bracketed(address)}"]
        try:
            return self.run(*argv, f"https://{domain}{path}", timeout_s=limit_s + 5).stdout or "000"
        except (OSError, subprocess.TimeoutExpired):
            return "000"
