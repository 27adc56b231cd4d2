"""Who should reach what, as a table: made from the settings, compared with what was seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from minipc.config import Settings
from minipc.records import Door
from minipc.separation.scan import Place, Scan

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
# Beside what is configured and what listens.
NOTABLE = frozenset({*NAMES, 111, 2379, 2380, 5433, 8000, 8443, 8472, 9094, 9187, 30000, 30080, 30443, 32767})


def expected(side: Place, port: int, settings: Settings, listening: Collection[int]) -> str:
    """What a side must see of a TCP port: "open", or "silent" as if there were nothing."""
    firewall = settings.firewall
    beside_the_vpn = firewall.operator_access == "networks"
    for_operator = side == "vpn" or (side == "operator" and beside_the_vpn)
    if side != "vpn" and port in firewall.public_tcp:
        return OPEN
    if (for_operator and port in firewall.operator_tcp) or (side == "vpn" and port in settings.vpn.services.values()):
        # A port that is let through and that nobody listens on answers so.
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
) -> list[Door]:
    """The rows of one side at one moment.

    Args:
        scans: by family.
        listening: TCP ports on which the machine listens, on whatever address.
        canaries: port and what is behind it.
        tried: how many ports were scanned.
    """
    firewall, named = settings.firewall, NAMES | dict(canaries)
    named |= {settings.postgres.port: "PostgreSQL", settings.redis.port: "Redis"}
    named |= {port: name for name, port in settings.vpn.services.items() if port not in named}
    named |= {settings.workload.port: "the service, past the door"}
    ports = {*firewall.public_tcp, *firewall.operator_tcp, *settings.vpn.services.values(), *canaries}
    ports |= {port for port in named if port in listening}
    rows = []
    for port in sorted(ports):
        want = expected(side, port, settings, listening)
        seen = {family: _state(each, port, want) for family, each in scans.items()}
        rows.append(_door(moment, side, f"{port}/tcp", named.get(port, "configured"), want, seen))
    surprises = {
        family: {port for port in each.open - ports if expected(side, port, settings, listening) != OPEN}
        for family, each in scans.items()
    }
    rest = {family: _rest(surprises[family], scans[family], side) for family in scans}
    others = f"all {tried - len(ports):,} other" if tried > len(NOTABLE) + 1000 else f"{tried - len(ports)} others"
    rows.append(_door(moment, side, f"{others}, tcp", "whatever listens there", SILENT, rest))
    return rows


def _state(seen: Scan, port: int, want: str) -> str:
    """One state for the ports that are not open: nmap's summary names no port. Where one may be closed, any may."""
    state = seen.state(port)
    if state == "open" or " or " not in state:
        return state
    return want if want in state.split(" or ") else state


def _rest(surprises: Collection[int], seen: Scan, side: str) -> str:
    if surprises:
        return f"open: {', '.join(map(str, sorted(surprises)))}"
    # A port of the operator's without a listener answers "closed"; its own row judges that.
    return SILENT if side != "public" and seen.others <= {"filtered", "closed"} else seen.rest


def _door(moment: str, side: Place, port: str, what: str, want: str, seen: Mapping[str, str]) -> Door:
    values = set(seen.values())
    words = values.pop() if len(values) == 1 else ", ".join(f"{family} {state}" for family, state in seen.items())
    families = " and ".join(seen)
    return Door(
        moment=moment, side=side, families=families, port=port, what=what, expected=want, seen=words, ok=words == want
    )
