"""The configured provider, with its token, and the records that the configuration wants there."""

from __future__ import annotations

from collections.abc import Mapping

from minipc import secrets
from minipc.config import Settings
from minipc.dns.cloudflare import Cloudflare
from minipc.dns.exchange import Say, silent
from minipc.dns.records import Kind, Record
from minipc.errors import ConfigError, RefusedError
from minipc.secrets.catalogue import DNS_TOKEN

Addresses = Mapping[Kind, str]


def open_provider(settings: Settings, say: Say = silent) -> Cloudflare:
    """The provider; nothing is asked before the first use.

    Raises:
        ConfigError: none is configured.
        SecretError: its token is missing.
    """
    if settings.dns.provider == "none" or settings.dns.zone is None:
        raise ConfigError(
            "no DNS provider is configured (dns_provider)",
            "set dns_provider, dns_zone and dns_records in group_data/, or change the records by hand",
        )
    token = secrets.load(settings.environment, [DNS_TOKEN])[DNS_TOKEN]
    return Cloudflare(settings.dns.zone, token.reveal(), settings.dns.api_url, say=say)


def wanted_records(settings: Settings, identity: str | None, addresses: Addresses) -> list[Record]:
    """The configured records as they are right after a cutover: these addresses, held by this machine, a short TTL.

    Raises:
        RefusedError: the machine was never adopted.
        ConfigError: no address is known for a configured record.
    """
    if identity is None:
        raise RefusedError(
            "the machine has no identity yet; records are held by one machine, so that an old one can't take them back",
            "`minipc adopt` first",
        )
    missing = [f"{record.name} {record.type}" for record in settings.dns.records if record.type not in addresses]
    if missing:
        raise ConfigError(
            f"no address is known for {', '.join(missing)}",
            "give --ipv4 or --ipv6, set dns_ipv4 or dns_ipv6, or set dns_follow and converge: then the machine tells",
        )
    return [
        Record(record.name, record.type, addresses[record.type], settings.dns.cutover_ttl_s).held_by(identity)
        for record in settings.dns.records
    ]


def configured_addresses(settings: Settings) -> dict[Kind, str]:
    """The fixed addresses from `dns_ipv4` and `dns_ipv6`."""
    fixed: dict[Kind, str | None] = {"A": settings.dns.ipv4, "AAAA": settings.dns.ipv6}
    return {kind: address for kind, address in fixed.items() if address}
