"""The two screens: what each one shows, and how it is read. How they are answered: answering.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minipc_workload.database import Connection


@dataclass(frozen=True)
class Content:
    """What a screen shows: items with `observed_at` as ISO times, and whether nothing is missing."""

    items: list[dict[str, Any]]
    complete: bool


@dataclass(frozen=True)
class Screen:
    """A screen and how it is read from the database."""

    name: str
    read: Callable[[Connection], Awaitable[Content]]
