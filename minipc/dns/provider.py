"""The configured provider, with its token, and the records that the configuration wants there."""

from __future__ import annotations

from collections.abc import Mapping

from minipc import secrets
from minipc.config import Settings
from minipc.core.errors import ConfigError, RefusedError
from minipc.dns.lexicon_provider import LexiconProvider
from minipc.dns.records import Kind, Record, Say, silent
from minipc.secrets.catalogue import dns_credentials

Addresses = Mapping[Kind, str]


def open_provider(settings: Settings, say: Say = silent) -> LexiconProvider:
    """Return the provider. It sends no request before its first use.

    Raises:
        ConfigError: none is configured.
        SecretError: its credentials are missing.
    """
    if settings.dns.provider == "none" or settings.dns.zone is None:
        raise ConfigError(
            "no DNS provider is configured (dns_provider)",
            "set dns_provider, dns_zone and dns_records in group_data/, or change the records manually",
        )
    dns = settings.dns
    name = dns_credentials(dns.provider)
    credentials = secrets.load(settings.environment, [name])[name]
    return LexiconProvider(dns.provider, settings.dns.zone, credentials.reveal(), dns.options, dns.api_url, say=say)


def wanted_records(settings: Settings, identity: str | None, addresses: Addresses) -> list[Record]:
    """Return the configured records as right after a cutover: these addresses, held by this machine, a short TTL.

    Raises:
        RefusedError: the machine was never adopted.
        ConfigError: no address is known for a configured record.
    """
    if identity is None:
        raise RefusedError(
            "the machine has no identity yet; each record belongs to one machine, so that an old one cannot change it",
            "run `minipc adopt` first",
        )
    missing = [f"{record.name} {record.type}" for record in settings.dns.records if record.type not in addresses]
    if missing:
        raise ConfigError(
            f"no address is known for {', '.join(missing)}",
            "give --ipv4 or --ipv6, or set dns_ipv4 or dns_ipv6; with dns_follow, the machine finds its address",
        )
    return [
        Record(record.name, record.type, addresses[record.type], settings.dns.cutover_ttl_s).held_by(identity)
        for record in settings.dns.records
    ]


def configured_addresses(settings: Settings) -> dict[Kind, str]:
    """Return the fixed addresses from `dns_ipv4` and `dns_ipv6`."""
    fixed: dict[Kind, str | None] = {"A": settings.dns.ipv4, "AAAA": settings.dns.ipv6}
    return {kind: address for kind, address in fixed.items() if address}
