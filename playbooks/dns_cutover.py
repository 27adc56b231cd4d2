"""Move the public name to another machine: lower the TTL first, set the records, then read them back.

    minipc dns lower      before a planned move, and at the start of a rebuild
    minipc dns plan       what the cutover would change
    minipc dns cutover    the move; a second run changes nothing
    minipc dns settle     the usual TTL again, when the new machine is accepted

Problems are found before the first change. Run an interrupted cutover again: it continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from minipc.config import Settings
from minipc.core.errors import CouldNotVerifyError
from minipc.core.formatting import first_line
from minipc.dns.changes import Change, changes, confirm, find
from minipc.dns.provider import Addresses, configured_addresses
from minipc.dns.records import Kind, Provider, Record, Say
from minipc.dns.shipped import ADDRESS_COMMAND
from minipc.remote import ssh
from minipc.remote.inventory import Target


def plan(provider: Provider, wanted: Sequence[Record]) -> list[Change]:
    """Return what a cutover would change. Change nothing.

    Raises:
        DnsError: another record prevents the change, or the provider cannot be reached.
    """
    return changes(provider.records(), wanted)


def cutover(provider: Provider, wanted: Sequence[Record], say: Say) -> list[Change]:
    """Set the records, read them back, and return the changes.

    Raises:
        DnsError: a record stands in the way (then nothing was changed), the provider refuses, or what is read back is
            not what was set.
    """
    needed = plan(provider, wanted)
    for change in needed:
        change.apply(provider)
        say(str(change))
    confirm(provider, [change.wanted for change in needed])
    moved = [change.present for change in needed if change.present and change.present.content != change.wanted.content]
    if moved:
        say(f"resolvers may answer the old address for up to {max(record.cached_s for record in moved)} s")
    return needed


def lower(provider: Provider, settings: Settings, say: Say) -> list[Change]:
    """Lower the records' TTL to `dns_cutover_ttl_s` and return the changes. Raise DnsError."""
    return _set_ttl(provider, settings, settings.dns.cutover_ttl_s, say, only_down=True)


def settle(provider: Provider, settings: Settings, say: Say) -> list[Change]:
    """Set the records' TTL to `dns_ttl_s` and return the changes. Raise DnsError."""
    return _set_ttl(provider, settings, settings.dns.ttl_s, say, only_down=False)


def _set_ttl(provider: Provider, settings: Settings, ttl_s: int, say: Say, *, only_down: bool) -> list[Change]:
    needed = [
        Change(record, replace(record, ttl_s=ttl_s))
        for record in configured_records(provider.records(), settings)
        # The TTL of a proxied record is the provider's.
        if not record.proxied and (record.cached_s > ttl_s or (not only_down and record.ttl_s not in (ttl_s, 0)))
    ]
    for change in needed:
        change.apply(provider)
        say(str(change))
    confirm(provider, [change.wanted for change in needed])
    return needed


def configured_records(present: Sequence[Record], settings: Settings) -> list[Record]:
    """Return the configured records that exist. Raise DnsError if one is ambiguous."""
    found = (find(present, record.name, record.type) for record in settings.dns.records)
    return [record for record in found if record is not None]


def addresses_of(target: Target, given: Addresses) -> dict[Kind, str]:
    """Return the addresses for the configured records: the given ones, else the configured ones, else the machine's.

    A machine reports its address only with `dns_follow`. Unknown addresses are left out.

    Raises:
        CouldNotVerifyError: the machine cannot be reached, or cannot find its address.
    """
    settings = target.settings
    known = configured_addresses(settings) | dict(given)
    if settings.dns.follow:
        for kind in _missing(settings, known):
            known[kind] = _ask_the_machine(target, kind)
    return known


def _missing(settings: Settings, known: Addresses) -> Iterable[Kind]:
    return [kind for kind in dict.fromkeys(record.type for record in settings.dns.records) if kind not in known]


def _ask_the_machine(target: Target, kind: Kind) -> str:
    config = ssh.write_config([(target.alias, target.data)])
    done = ssh.run(config, target.alias, f"{ADDRESS_COMMAND} {kind}", timeout_s=120)
    if done.returncode:
        reason = first_line(done.stderr.decode(errors="replace"))
        raise CouldNotVerifyError(
            f"{target.alias} could not find its public address for {kind}: {reason}",
            f"give --{'ipv4' if kind == 'A' else 'ipv6'}, or run `minipc apply dns`",
        )
    return done.stdout.decode().strip()
