"""Compute settings from the machine's memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PostgresMemory:
    """PostgreSQL's memory settings, MB."""

    total_mb: int
    shared_buffers_mb: int
    effective_cache_size_mb: int
    work_mem_mb: int
    maintenance_work_mem_mb: int


def postgres_memory(total_mb: int, shared_buffers_percent: int) -> PostgresMemory:
    """Return memory settings for PostgreSQL on a machine that also runs the cluster and the monitoring.

    The ratios are those of the PostgreSQL manual's "Resource Consumption" chapter, scaled down for a shared machine.
    Memory is rounded down to steps, so that a kernel that reports a few MB more after an update causes no restart.

    Args:
        total_mb: the machine's memory, MB.
        shared_buffers_percent: share of it for shared_buffers.
    """
    total = max(256, total_mb // 256 * 256)
    shared = max(64, total * shared_buffers_percent // 100)
    return PostgresMemory(
        total_mb=total,
        shared_buffers_mb=shared,
        effective_cache_size_mb=max(shared, total // 2),
        work_mem_mb=max(4, total // 1024),
        maintenance_work_mem_mb=min(1024, max(32, total // 16)),
    )
