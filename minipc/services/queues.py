"""Redis queues: an instance for each service that declares one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minipc.config import Settings
from minipc.config.service import Service
from minipc.services.ports import redis_port

FOLDER = "/var/lib/redis-queues"


@dataclass(frozen=True)
class Queue:
    """A Redis instance of one service.

    Attributes:
        service: its name.
        port: where it listens.
        memory_mb: writes are refused above it.
        keys: patterns that the service may use.
    """

    service: str
    port: int
    memory_mb: int
    keys: Sequence[str]

    @property
    def unit(self) -> str:
        """Return the systemd unit."""
        return f"redis-server@queue-{self.service}.service"

    @property
    def folder(self) -> str:
        """Return the folder with its data."""
        return f"{FOLDER}/{self.service}"

    @property
    def configuration(self) -> str:
        """Return the configuration file, as Debian's unit expects it."""
        return f"/etc/redis/redis-queue-{self.service}.conf"

    @property
    def users(self) -> str:
        """Return the file with its users."""
        return f"/etc/redis/queue-{self.service}.acl"


def queues(settings: Settings) -> list[Queue]:
    """Return the queues of all services."""
    return [_queue(settings, each) for each in settings.services.declared if each.redis and each.redis.kind == "queue"]


def _queue(settings: Settings, service: Service) -> Queue:
    redis = service.redis
    assert redis is not None  # noqa: S101 - `queues` asks for those that have one
    return Queue(service.name, redis_port(settings, service), redis.memory_mb, redis.keys or ["*"])
