"""What a question is asked about: the parts of the services, from their files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minipc.checks.schema import Subjects
from minipc.config.service import Service


@dataclass(frozen=True, order=True)
class Subject:
    """A service, or one part of it: a process, page, cron job or volume."""

    service: str
    part: str = ""

    @property
    def name(self) -> str:
        """Return SERVICE or SERVICE/PART, as readings are named."""
        return f"{self.service}/{self.part}" if self.part else self.service


def subjects(kind: Subjects, services: Iterable[Service]) -> tuple[Subject, ...]:
    """Return what a question of this kind is asked about, in all services."""
    return tuple(Subject(service.name, part) for service in services for part in _parts(kind, service))


def _parts(kind: Subjects, service: Service) -> list[str]:
    match kind:
        case "ingress":
            return [""] if service.ingress else []
        case "public":
            return [""] if service.ingress and service.ingress.audience == "public" else []
        case "page":
            return [name for name, page in service.alerts.pages.items() if page.alert]
        case "process":
            return list(service.processes)
        case "metrics":
            return [name for name, process in service.processes.items() if process.metrics]
        case "cron":
            return list(service.cron)
        case "volume":
            return list(service.volumes)
        case "queue":
            return [""] if service.redis and service.redis.kind == "queue" else []
