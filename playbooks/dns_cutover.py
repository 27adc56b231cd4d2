"""Moves the public name to another machine: the TTL is lowered before, the records are set, then read back.

    minipc dns lower      when a move is planned, and at the start of a rebuild
    minipc dns plan       what the cutover would change
    minipc dns cutover    the move; again it changes nothing
    minipc dns settle     the usual TTL again, once the new machine is accepted

Everything that stands in the way is found before the first change. A cutover that was cut off goes on where it
stopped: run it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from minipc import ssh
from minipc.config import Settings
from minipc.dns.changes import Change, changes, confirm, find
from minipc.dns.exchange import Say
from minipc.dns.provider import Addresses, configured_addresses
from minipc.dns.records import Kind, Provider, Record
from minipc.dns.shipped import ADDRESS_COMMAND
from minipc.errors import CouldNotVerifyError
from minipc.inventory import Target
from minipc.wording import first_line


def plan(provider: Provider, wanted: Sequence[Record]) -> list[Change]:
    """What a cutover would change; changes nothing.

    Raises:
        DnsError: a record stands in the way, or the provider can't be asked.
    """
    return changes(provider.records(), wanted)


def cutover(provider: Provider, wanted: Sequence[Record], say: Say) -> list[Change]:
    """Sets the records, reads them back, and returns what was changed.

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
    """Has the records' TTL at most `dns_cutover_ttl_s`; returns what was changed. Raises DnsError."""
    return _set_ttl(provider, settings, settings.dns.cutover_ttl_s, say, only_down=True)


def settle(provider: Provider, settings: Settings, say: Say) -> list[Change]:
    """Has the records' TTL at `dns_ttl_s`; returns what was changed. Raises DnsError."""
    return _set_ttl(provider, settings, settings.dns.ttl_s, say, only_down=False)


def _set_ttl(provider: Provider, settings: Settings, ttl_s: int, say: Say, *, only_down: bool) -> list[Change]:
    needed = [
        Change(record, replace(record, ttl_s=ttl_s))
        for record in configured_records(provider.records(), settings)
        # The TTL of a proxied record is the provider's.
        if not record.proxied and (record.cached_s > ttl_s or (not only_down and record.ttl_s != ttl_s))
    ]
    for change in needed:
        change.apply(provider)
        say(str(change))
    confirm(provider, [change.wanted for change in needed])
    return needed


def configured_records(present: Sequence[Record], settings: Settings) -> list[Record]:
    """Those of the configured records that are there. Raises DnsError when one is ambiguous."""
    found = (find(present, record.name, record.type) for record in settings.dns.records)
    return [record for record in found if record is not None]


def addresses_of(target: Target, given: Addresses) -> dict[Kind, str]:
    """The addresses for the configured records: those given, else the configured ones, else what the machine says.

    A machine can say it where `dns_follow` is on; the others are left out.

    Raises:
        CouldNotVerifyError: it can't be reached, or could not learn its address.
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
            f"{target.alias} could not learn its address for {kind}: {reason}",
            f"give --{'ipv4' if kind == 'A' else 'ipv6'}, or converge it: `minipc apply dns`",
        )
    return done.stdout.decode().strip()
