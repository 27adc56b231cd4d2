"""What the ingress does for each service: its site, the proxies it trusts, the paths it never serves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from minipc.config import Settings
from minipc.config.service import ForwardAuthentication, Ingress, Service
from minipc.core.ports import MONITORING, OPERATOR_INGRESS

# https://www.cloudflare.com/ips-v4 and https://www.cloudflare.com/ips-v6; the list has not changed since 2021-06.
CLOUDFLARE = (
    "173.245.48.0/20",
    "103.21.244.0/22",
    "103.22.200.0/22",
    "103.31.4.0/22",
    "141.101.64.0/18",
    "108.162.192.0/18",
    "190.93.240.0/20",
    "188.114.96.0/20",
    "197.234.240.0/22",
    "198.41.128.0/17",
    "162.158.0.0/15",
    "104.16.0.0/13",
    "104.24.0.0/14",
    "172.64.0.0/13",
    "131.0.72.0/22",
    "2400:cb00::/32",
    "2606:4700::/32",
    "2803:f800::/32",
    "2405:b500::/32",
    "2405:8100::/32",
    "2a06:98c0::/29",
    "2c0f:f248::/32",
)
PASSWORDS = "/etc/caddy/passwords"
"""File with a snippet for each site that asks for a password: the user, and a hash."""
RATE_SOCKET = "/run/minipc-request-rate/{name}.sock"
DEFAULT_METRICS_PATH = "/metrics"

# A character that is not a letter or digit, encoded for a URL once or several times (%25 is an encoded %).
_ENCODED_OTHER = r"%(?:25)*(?:[0-2][0-9a-f]|3[a-f]|40|5[b-f]|60|7[b-f]|[89a-f][0-9a-f])"
# What servers may drop in front of a path segment: slashes, dots, spaces, control characters, and ;parameters.
_SKIPPED = rf"(?:[^a-z0-9%?;]|(?:;|%(?:25)*3b)[^/?]*|{_ENCODED_OTHER})"
_END = rf"(?:$|[^a-z0-9_%-]|{_ENCODED_OTHER})"
DOT_SEGMENTS = (
    r"(?i)^[^?]*(?:/|\\|%(?:25)*(?:2f|5c))(?:\.|%(?:25)*2e)+(?:$|[/\\;?#]|%(?:25)*(?:[01][0-9a-f]|20|23|2f|3b|3f|5c))"
)
"""Regular expression of request URIs with a segment of dots only. No browser sends one."""


@dataclass(frozen=True)
class Site:
    """The site of one service, as the templates need it."""

    service: Service
    ingress: Ingress

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def addresses(self) -> list[str]:
        """Return the addresses of its own site."""
        return [self._address(name) for name in self.ingress.domains]

    @property
    def redirects(self) -> list[str]:
        """Return the addresses that only redirect."""
        return [self._address(name) for name in self.ingress.redirects]

    @property
    def domain(self) -> str:
        return self.ingress.domains[0]

    @property
    def rate_socket(self) -> str:
        """Return the path of the socket of the program that counts requests."""
        return RATE_SOCKET.format(name=self.name)

    @property
    def upstream(self) -> str:
        return f"127.0.0.1:{self.ingress.node_port}"

    @property
    def proxies(self) -> list[str]:
        """Return the networks of the trusted proxies."""
        return trusted_proxies([self.service])

    @property
    def hidden(self) -> str:
        """Return the regular expression of the request URIs that are never served."""
        paths = {each.metrics.path for each in self.service.processes.values() if each.metrics}
        return never_public([DEFAULT_METRICS_PATH, *sorted(paths - {DEFAULT_METRICS_PATH})])

    @property
    def basic(self) -> bool:
        """Return whether the ingress asks for a password."""
        return bool(self.ingress.authentication and self.ingress.authentication.basic)

    @property
    def forward(self) -> ForwardAuthentication | None:
        """Return whom the ingress asks before each request; None: nobody."""
        return self.ingress.authentication.forward if self.ingress.authentication else None

    @property
    def forward_server(self) -> str:
        """Return scheme, host and port of the authentication server."""
        url = urlsplit(self.forward.url if self.forward else "")
        return f"{url.scheme}://{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}"

    @property
    def forward_uri(self) -> str:
        """Return path and query that the authentication server is asked with."""
        url = urlsplit(self.forward.url if self.forward else "")
        return (url.path or "/") + (f"?{url.query}" if url.query else "")

    def _address(self, name: str) -> str:
        return f"https://{name}" + (f":{OPERATOR_INGRESS}" if self.ingress.audience == "operator" else "")


def sites(services: Iterable[Service]) -> list[Site]:
    """Return the sites of the services that the ingress serves, in their order."""
    return [Site(each, each.ingress) for each in services if each.ingress]


def caddyfile_values(settings: Settings, *, for_operator: bool) -> dict[str, Any]:
    """Return the values of the Caddyfile's template: of the public ingress, or of the one for the operator's VPN."""
    services = settings.services.for_operator if for_operator else settings.services.public
    return {
        "edge": settings.edge,
        "for_operator": for_operator,
        "sites": sites(services),
        # No public authority can reach a name for the operator, and its list of certificates would publish it.
        "internal": for_operator or settings.edge.acme == "internal",
        "run": "/run/caddy-operator" if for_operator else "/run/caddy",
        "log_file": f"/var/log/caddy/{'operator' if for_operator else 'access'}.log",
        "metrics_port": MONITORING["caddy"],
        "dot_segments": DOT_SEGMENTS,
        "passwords": PASSWORDS,
    }


def trusted_proxies(services: Iterable[Service]) -> list[str]:
    """Return the networks of all proxies that one of the services trusts, without duplicates."""
    found: list[str] = []
    for service in services:
        given = service.ingress.trusted_proxies if service.ingress else []
        found += CLOUDFLARE if given == "cloudflare" else given
    return list(dict.fromkeys(found))


def never_public(paths: Sequence[str]) -> str:
    """Return a regular expression of all request URIs that a server could take for one of the paths, or below it.

    It matches the URI as it was sent: any letters' case, characters encoded once or several times, additional slashes,
    control characters and parameters. Paths with dot segments are not covered: DOT_SEGMENTS refuses them.
    """
    return f"(?i)^(?:{'|'.join(_spellings(path) for path in paths)}){_END}"


def _spellings(path: str) -> str:
    segments = [segment for segment in re.split(r"[^A-Za-z0-9_.~-]+", path) if segment]
    return "".join(f"{_SKIPPED}{'*' if number == 0 else '+'}{_encoded(each)}" for number, each in enumerate(segments))


def _encoded(segment: str) -> str:
    return "".join(
        f"(?:{re.escape(each)}|%(?:25)*(?:{ord(each.lower()):02x}|{ord(each.upper()):02x}))" for each in segment
    )


def unusual_spellings(path: str) -> list[str]:
    """Return ways to write a path that some servers take for it, for tests from outside."""
    name, bare = path.strip("/"), path.rstrip("/")
    first, rest = name[0], name[1:]
    return [
        bare,
        f"{bare}/",
        f"/{bare}",
        f"//{bare}",
        f"/%{ord(first):02x}{rest}",
        f"/%{ord(first):02X}{rest.upper()}",
        f"/%25{ord(first):02x}{rest}",
        f"{bare}?x=1",
        bare.upper(),
        f"/.{bare}",
        f"/%2e{bare}",
        f"/minipc/..{bare}",
        f"/minipc/%2e%2e{bare}",
        f"/minipc/..;{bare}",
        f"/minipc%2f..%2f{name}",
        f"/minipc//..{bare}",
        f"/;x{bare}",
        f"/%2f{name}",
        f"/%0a{name}",
        f"/%5c{name}",
        *(
            f"{bare}{end}"
            for end in ("%2f", "/x", "%00", ";x", "%20", "%0a", "%0d%0a", "%09", ".", "%23x", "%3fx", "//")
        ),
    ]
