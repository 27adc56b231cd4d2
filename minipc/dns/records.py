"""What a public record is, and what a provider of DNS offers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from minipc.core.errors import MinipcError

Kind = Literal["A", "AAAA"]
Sleep = Callable[[float], None]
Say = Callable[[str], None]

DELAYS_S = (1.0, 4.0, 16.0)
"""Waits between attempts, seconds."""
# Cloudflare's word for "the provider decides". Resolvers are told 300 s then.
AUTOMATIC_TTL = 1
_AUTOMATIC_TTL_S = 300
_HOLDER = re.compile(r"minipc ([0-9a-f-]{36})")


class DnsError(MinipcError):
    """The provider refused, did not answer, or did not do what it said; names the record or the zone."""


def silent(text: str) -> None:
    """Discard a message, for callers without a terminal."""


@dataclass(frozen=True)
class Record:
    """One DNS record.

    Attributes:
        name: full name, lower case, without a dot at the end.
        type: "A", "AAAA", or whatever else is there.
        content: for A and AAAA the address.
        ttl_s: seconds that resolvers may keep it; AUTOMATIC_TTL: the provider decides; 0: it does not tell.
        holder: identity of the machine that may change the address by itself; None: no machine may. It is kept in a
            TXT record `_minipc.NAME`, for all records of that name.
        proxied: the provider answers with addresses of its own and forwards; the TTL is then the provider's.
        id: the provider's name for it; empty for one that isn't there yet.
    """

    name: str
    type: str
    content: str
    ttl_s: int
    holder: str | None = None
    proxied: bool = False
    id: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.type}"

    @property
    def cached_s(self) -> int:
        """How long resolvers keep it, seconds."""
        return _AUTOMATIC_TTL_S if self.ttl_s == AUTOMATIC_TTL else self.ttl_s

    def held_by(self, identity: str) -> Record:
        """Return the same record, held by a machine."""
        return replace(self, holder=identity)


def holder_name(name: str) -> str:
    """Return the name of the TXT record that names the holder of a name's records."""
    return f"_minipc.{name}"


def identity_in(text: str) -> str | None:
    """Return the machine's identity in the text of a holder's TXT record; None if it is another text."""
    found = _HOLDER.fullmatch(text)
    return found[1] if found else None


class Provider(Protocol):
    """The records of one zone. Every method raises DnsError, or SecretError when the credentials are refused."""

    def records(self) -> Sequence[Record]:
        """Return all records of the zone."""

    def create(self, record: Record) -> None:
        """Add a record."""

    def update(self, present: Record, wanted: Record) -> None:
        """Change what differs; `present` is as `records` returned it."""
