"""Which ports each side should reach, derived from the settings and compared with a scan."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from minipc.config import Settings
from minipc.evidence.records import PortState
from minipc.verification.port_scan import Place, Scan

SILENT, OPEN = "silent", "open"
NAMES = {
    22: "SSH",
    80: "HTTP, redirects",
    443: "HTTPS",
    2019: "Caddy's admin API",
    3000: "Grafana",
    3100: "Loki",
    5432: "PostgreSQL",
    6379: "Redis",
    6443: "Kubernetes API",
    8080: "ArgoCD",
    9090: "Prometheus",
    9093: "Alertmanager",
    9100: "node exporter",
    10250: "kubelet",
}
# Scanned in addition to configured ports and listeners.
NOTABLE = frozenset({*NAMES, 111, 2379, 2380, 5433, 8000, 8443, 8472, 9094, 9187, 30000, 30080, 30443, 32767})


def expected(side: Place, port: int, settings: Settings, listening: Collection[int]) -> str:
    """Return what a side must see of a TCP port: "open", "closed", or "silent" (no answer at all)."""
    firewall = settings.firewall
    vpn_bypass = firewall.operator_access == "networks"
    for_operator = side == "vpn" or (side == "operator" and vpn_bypass)
    if side != "vpn" and port in firewall.public_tcp:
        return OPEN
    if (for_operator and port in firewall.operator_tcp) or (side == "vpn" and port in settings.vpn.services.values()):
        # A port that the firewall allows but without a listener.
        return OPEN if port in listening else "closed"
    return SILENT


def judge(
    moment: str,
    side: Place,
    scans: Mapping[str, Scan],
    settings: Settings,
    listening: Collection[int],
    canaries: Mapping[int, str],
    tried: int,
) -> list[PortState]:
    """Return the port states of one side at one moment.

    Args:
        scans: scans by address family.
        listening: TCP ports on which the machine listens, on any address.
        canaries: ports of the canaries and their descriptions.
        tried: number of scanned ports.
    """
    firewall, named = settings.firewall, NAMES | dict(canaries)
    named |= {settings.postgres.port: "PostgreSQL", settings.redis.port: "Redis"}
    named |= {port: name for name, port in settings.vpn.services.items() if port not in named}
    fronts = [each for each in settings.services.declared if each.ingress]
    named |= {each.ingress.node_port: f"{each.name}, without the ingress" for each in fronts if each.ingress}
    ports = {*firewall.public_tcp, *firewall.operator_tcp, *settings.vpn.services.values(), *canaries}
    ports |= {port for port in named if port in listening}
    rows = []
    for port in sorted(ports):
        want = expected(side, port, settings, listening)
        seen = {family: _state(each, port, want) for family, each in scans.items()}
        rows.append(_port_state(moment, side, f"{port}/tcp", named.get(port, "configured"), want, seen))
    surprises = {
        family: {port for port in each.open - ports if expected(side, port, settings, listening) != OPEN}
        for family, each in scans.items()
    }
    rest = {family: _rest(surprises[family], scans[family], side) for family in scans}
    others = f"all {tried - len(ports):,} other" if tried > len(NOTABLE) + 1000 else f"{tried - len(ports)} others"
    rows.append(_port_state(moment, side, f"{others}, tcp", "any listener", SILENT, rest))
    return rows


def _state(seen: Scan, port: int, want: str) -> str:
    """Return the state of a port. nmap's summary does not name ports that are not open."""
    state = seen.state(port)
    if state == "open" or " or " not in state:
        return state
    return want if want in state.split(" or ") else state


def _rest(surprises: Collection[int], seen: Scan, side: str) -> str:
    if surprises:
        return f"open: {', '.join(map(str, sorted(surprises)))}"
    # An operator's port without a listener answers "closed"; it has a row of its own.
    return SILENT if side != "public" and seen.others <= {"filtered", "closed"} else seen.rest


def _port_state(moment: str, side: Place, port: str, what: str, want: str, seen: Mapping[str, str]) -> PortState:
    values = set(seen.values())
    words = values.pop() if len(values) == 1 else ", ".join(f"{family} {state}" for family, state in seen.items())
    families = " and ".join(seen)
    return PortState(
        moment=moment, side=side, families=families, port=port, what=what, expected=want, seen=words, ok=words == want
    )
