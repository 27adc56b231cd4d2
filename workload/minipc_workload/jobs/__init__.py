"""What the workers do. A job finishes its batch whatever single items do, and says how it went."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from minipc_workload.errors import CircuitOpenError, DatabaseUnavailableError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """How many items went through and how many didn't."""

    done: int = 0
    failed: int = 0

    @property
    def status(self) -> Literal["ok", "degraded", "failed"]:
        """`degraded`: some failed, not all. An empty batch is ok."""
        if self.failed == 0:
            return "ok"
        return "degraded" if self.done else "failed"

    def __add__(self, other: Batch) -> Batch:
        return Batch(self.done + other.done, self.failed + other.failed)


async def each(items: Iterable[T], handle: Callable[[T], Awaitable[object]]) -> Batch:
    """Handles all items; one that fails is logged and counted, the rest goes on.

    Raises:
        DatabaseUnavailableError, CircuitOpenError: what every item needs is gone, so the rest would fail as well.
    """
    batch = Batch()
    for item in items:
        try:
            await handle(item)
        except (DatabaseUnavailableError, CircuitOpenError):
            raise
        except Exception as error:
            log.warning("item failed", extra={"item": _label(item), "reason": f"{type(error).__name__}: {error}"})
            batch += Batch(failed=1)
        else:
            batch += Batch(done=1)
    return batch


def _label(item: object) -> str:
    return str(item.get("id")) if isinstance(item, dict) else str(item)[:100]
