"""From the records that are there to those that are wanted: what stands in the way, what changes, and the proof."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from minipc.dns.records import DELAYS_S, DnsError, Provider, Record, Sleep


@dataclass(frozen=True)
class Change:
    """One record to create (`present` is None) or to change."""

    present: Record | None
    wanted: Record

    def __str__(self) -> str:
        if self.present is None:
            return f"{self.wanted}: create with {self.wanted.content}, ttl {self.wanted.ttl_s} s"
        parts = []
        if not same_content(self.present, self.wanted):
            parts.append(f"{self.present.content} -> {self.wanted.content}")
        if self.present.ttl_s != self.wanted.ttl_s:
            parts.append(f"ttl {self.present.cached_s} -> {self.wanted.cached_s} s")
        if self.present.holder != self.wanted.holder:
            parts.append(f"held by {self.present.holder or 'no machine'} -> {self.wanted.holder}")
        return f"{self.wanted}: {', '.join(parts)}"

    def apply(self, provider: Provider) -> None:
        """Apply the change. Raises DnsError or SecretError."""
        if self.present is None:
            provider.create(self.wanted)
        else:
            provider.update(self.present, self.wanted)


def find(present: Iterable[Record], name: str, kind: str) -> Record | None:
    """Return the one record of this name and type, or None.

    Raises:
        DnsError: several of them, or a record that leaves no room for it.
    """
    named = [record for record in present if record.name == name]
    alias = next((record for record in named if record.type == "CNAME"), None)
    if alias is not None:  # RFC 1034, 3.6.2
        raise DnsError(
            f"{name} has a CNAME record ({alias.content}), so it cannot have a record of type {kind}",
            f"remove the CNAME record of {name}, or remove {name} from dns_records; nothing was changed",
        )
    found = [record for record in named if record.type == kind]
    if len(found) > 1:
        contents = ", ".join(record.content for record in found)
        raise DnsError(
            f"{name} has {len(found)} {kind} records ({contents}), but minipc manages exactly one",
            f"remove all but one {kind} record of {name}; nothing was changed",
        )
    return found[0] if found else None


def changes(present: Sequence[Record], wanted: Iterable[Record]) -> list[Change]:
    """Return the changes to make. A record with the right address and holder needs none, whatever its TTL.

    Raises:
        DnsError: as in `find`.
    """
    needed = []
    for record in wanted:
        there = find(present, record.name, record.type)
        target = _towards(there, record)
        if there != target:
            needed.append(Change(there, target))
    return needed


def _towards(there: Record | None, wanted: Record) -> Record:
    """`wanted` with what is the provider's or the user's to decide taken from the record that is there."""
    if there is None:
        return wanted
    same = same_content(there, wanted)
    return replace(
        wanted,
        id=there.id,
        proxied=there.proxied,
        content=there.content if same else wanted.content,
        ttl_s=there.ttl_s if same or there.proxied else wanted.ttl_s,
    )


def confirm(provider: Provider, wanted: Sequence[Record], sleep: Sleep = time.sleep) -> None:
    """Read the records back and compare them, several times if needed: a change may take a moment to appear.

    Raises:
        DnsError: what is there is not what was set; names record and both values.
    """
    if not wanted:
        return
    for delay in (*DELAYS_S, None):
        present = provider.records()
        different = [problem for record in wanted if (problem := _difference(present, record))]
        if not different:
            return
        if delay is not None:
            sleep(delay)
    raise DnsError(
        f"the records differ from what was just set: {'; '.join(different)}",
        "check with `minipc dns show` whether something else changes them too, then run again",
    )


def _difference(present: Sequence[Record], wanted: Record) -> str:
    there = find(present, wanted.name, wanted.type)
    if there is None:
        return f"{wanted} is missing"
    if not same_content(there, wanted):
        return f"{wanted} is {there.content}, not {wanted.content}"
    if there.holder != wanted.holder:
        return f"{wanted} is held by {there.holder or 'no machine'}, not {wanted.holder or 'no machine'}"
    if there.ttl_s not in (wanted.ttl_s, 0) and not there.proxied:
        return f"{wanted} has ttl {there.ttl_s}, not {wanted.ttl_s}"
    return ""


def same_content(one: Record, other: Record) -> bool:
    """Whether both say the same; an IPv6 address has several spellings."""
    try:
        return ipaddress.ip_address(one.content) == ipaddress.ip_address(other.content)
    except ValueError:
        return one.content == other.content
