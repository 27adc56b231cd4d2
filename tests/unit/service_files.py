"""Service files of several shapes, for the tests."""

from __future__ import annotations

from typing import Any

from minipc.config import Settings, load
from minipc.config.service import Service
from minipc.config.services import derived

# Unlike the example service in everything: one URL, a worker without metrics, uploads, no Redis.
BOOKINGS: dict[str, Any] = {
    "name": "bookings",
    "image": "ghcr.io/you/bookings",
    "user": 1000,
    "ingress": {"domains": ["bookings.example"], "redirects": ["www.bookings.example"], "node_port": 30081},
    "processes": {
        "web": {"port": 8000, "metrics": {"port": 8000}},
        "worker": {
            "command": ["python", "bookings.py", "worker"],
            "environment": {"DATABASE_URL": "{secret.OTHER_URL}"},
        },
    },
    "cron": {
        "nightly": {"schedule": "0 3 * * *", "command": ["python", "bookings.py", "nightly"], "alert_after": "26h"}
    },
    "migrate": {"command": ["python", "bookings.py", "migrate"]},
    "health": {"live": "/healthz", "ready": "/healthz"},
    "postgres": {"database": "bookings"},
    "environment": {
        "DATABASE_URL": "postgresql://{postgres.user}:{postgres.password}@{postgres.host}:{postgres.port}/{postgres.database}",
        "RELEASE": "bookings@{service.version}",
        "LITERAL": "$(HOME) and {braces}",
    },
    "secrets": ["STRIPE_KEY", "OTHER_URL"],
    "volumes": {
        "uploads": {"mount": "/data/uploads", "size_gb": 5, "data_class": "must recover", "processes": ["web"]},
    },
    "destinations": [{"network": "internet", "ports": [443]}],
}
# As small as a service can be.
TINY: dict[str, Any] = {"name": "tiny", "image": "registry.example/tiny", "processes": {"main": {}}}


def service(content: dict[str, Any], **changes: Any) -> Service:
    """Return the service that a file with this content describes."""
    return Service.model_validate({**content, **changes})


def settings(*services: Service) -> Settings:
    """Return the lab's settings with these services."""
    found = load("lab")
    changed: dict[str, dict[str, Any]] = {"services": {"declared": services}}
    for key, value in derived(services).items():
        section, _, name = key.partition("_")
        changed.setdefault(section, {})[name] = value
    values = found.model_dump()
    for section, more in changed.items():
        values[section] |= more
    return Settings.model_validate(values)
