"""What a public record is, and what a provider of DNS offers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from minipc.errors import MinipcError

Kind = Literal["A", "AAAA"]

# Cloudflare's word for "leave it to us": resolvers are told 300 s then.
AUTOMATIC_TTL = 1
_AUTOMATIC_TTL_S = 300
_HOLDER = re.compile(r"minipc ([0-9a-f-]{36})")


class DnsError(MinipcError):
    """The provider refused, did not answer, or did not do what it said; names the record or the zone."""


@dataclass(frozen=True)
class Record:
    """One DNS record.

    Attributes:
        name: full name, lower case, without a dot at the end.
        type: "A", "AAAA", or whatever else is there.
        content: for A and AAAA the address.
        ttl_s: seconds that resolvers may keep it; AUTOMATIC_TTL: the provider decides.
        comment: a note that only the provider's users see; ours says which machine holds the record.
        proxied: the provider answers with addresses of its own and forwards; the TTL is then the provider's.
        id: the provider's name for it; empty for one that isn't there yet.
    """

    name: str
    type: str
    content: str
    ttl_s: int
    comment: str = ""
    proxied: bool = False
    id: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.type}"

    @property
    def cached_s(self) -> int:
        """How long resolvers keep it, seconds."""
        return _AUTOMATIC_TTL_S if self.ttl_s == AUTOMATIC_TTL else self.ttl_s

    @property
    def holder(self) -> str | None:
        """Identity of the machine that may change the address by itself; None: no machine may."""
        found = _HOLDER.fullmatch(self.comment)
        return found[1] if found else None

    def held_by(self, identity: str) -> Record:
        """The same record, held by a machine."""
        return replace(self, comment=f"minipc {identity}")


class Provider(Protocol):
    """The records of one zone. Every method raises DnsError, or SecretError when the token is refused."""

    def records(self) -> Sequence[Record]:
        """All records of the zone."""

    def create(self, record: Record) -> None:
        """Adds a record."""

    def update(self, present: Record, wanted: Record) -> None:
        """Changes what differs; `present` is as `records` returned it."""
