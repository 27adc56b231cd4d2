"""A job finishes its batch even if single items fail, and reports the outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from minipc_workload.resilience import UnavailableError

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class Batch:
    """How many items succeeded and failed."""

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


async def each(items: Iterable[Any], handle: Callable[[Any], Awaitable[object]]) -> Batch:
    """Handle all items. One that fails is logged and counted, and the rest goes on.

    Raises UnavailableError: every item needs the same service, so the rest would fail as well.
    """
    batch = Batch()
    for item in items:
        try:
            await handle(item)
            batch += Batch(done=1)
        except UnavailableError:
            raise
        except Exception as error:
            label = str(item.get("id") if isinstance(item, dict) else item)[:100]
            log.warning("item failed", item=label, reason=f"{type(error).__name__}: {error}")
            batch += Batch(failed=1)
    return batch
