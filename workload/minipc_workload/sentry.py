"""Errors go to Sentry when a DSN is set: each record logged at ERROR or above becomes an event."""

from __future__ import annotations

import json
from typing import Any

from minipc_workload.logs import Redactor, request_id
from minipc_workload.settings import Settings


def start(settings: Settings, service: str) -> None:
    """Starts reporting, tagged service, env and version. Does nothing without a DSN."""
    if settings.sentry_dsn is None:
        return
    import sentry_sdk

    redact = Redactor(settings.secrets)

    def before_send(event: Any, _hint: Any) -> Any:
        if request_id.get():
            event.setdefault("tags", {})["request_id"] = request_id.get()
        return json.loads(redact(json.dumps(event, default=str)))

    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        environment=settings.environment,
        release=settings.version,
        auto_enabling_integrations=False,
        # Local variables and request bodies hold users' data and passwords.
        include_local_variables=False,
        max_request_body_size="never",
        send_default_pii=False,
        before_send=before_send,
        shutdown_timeout=3,
    )
    scope = sentry_sdk.get_global_scope()
    for tag, value in {"service": service, "env": settings.environment, "version": settings.version}.items():
        scope.set_tag(tag, value)
