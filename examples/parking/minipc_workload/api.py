"""The HTTP API. Three audiences: probes (livez, readyz), monitors (health, metrics), users (everything else)."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field, field_validator

from minipc_workload import health, views
from minipc_workload.cache import Cache
from minipc_workload.database import Database, Row
from minipc_workload.logs import request_id
from minipc_workload.middleware import RequestMiddleware
from minipc_workload.resilience import UnavailableError
from minipc_workload.settings import Settings

log = structlog.stdlib.get_logger(__name__)
router = APIRouter()

# A user's request must be answered while they still look at the screen.
DATABASE_TIMEOUT_S = 1.5
POOL_SIZE = 8
# Readiness may take its time: a busy machine is no reason to take the API out of service. Kubelets wait 1 s.
READINESS_BUDGET_S = 0.8
# One slow answer is not an outage: the ingress would refuse all writes until it asks again.
READINESS_GRACE_S = 3.0
EVENT_MAX_BYTES = 16_384
EVENT_MAX_DEPTH = 20
ERRORS_MAX = 10

USER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
User = Annotated[str, Path(pattern=USER_PATTERN)]

# Every change leaves a line in the audit log, in the same statement and so in the same transaction.
AUDIT = "audit AS (INSERT INTO audit_log (user_id, action, request_id) VALUES (%(user)s, %(action)s, %(request_id)s))"
SETTINGS = "user_id, parking_alerts, outing_alerts, min_free_spaces, updated_at"
PUT_SETTINGS = f"""
    WITH stored AS (
        INSERT INTO notification_settings (user_id, parking_alerts, outing_alerts, min_free_spaces)
        VALUES (%(user)s, %(parking_alerts)s, %(outing_alerts)s, %(min_free_spaces)s)
        ON CONFLICT (user_id) DO UPDATE SET parking_alerts = excluded.parking_alerts,
            outing_alerts = excluded.outing_alerts, min_free_spaces = excluded.min_free_spaces, updated_at = now()
        RETURNING {SETTINGS}),
    {AUDIT} SELECT {SETTINGS} FROM stored"""
GET_SETTINGS = f"SELECT {SETTINGS} FROM notification_settings WHERE user_id = %(user)s"
SUBSCRIPTION = "id, user_id, endpoint, created_at"
# A new subscription is confirmed by a first notification.
ADD_SUBSCRIPTION = f"""
    WITH stored AS (
        INSERT INTO push_subscriptions (user_id, endpoint, p256dh, auth)
        VALUES (%(user)s, %(endpoint)s, %(p256dh)s, %(auth)s)
        ON CONFLICT (user_id, endpoint) DO UPDATE SET p256dh = excluded.p256dh, auth = excluded.auth
        RETURNING {SUBSCRIPTION}),
    welcome AS (
        INSERT INTO outbox (subscription_id, dedup_key, request_id, payload)
        SELECT id, 'welcome', %(request_id)s, %(payload)s FROM stored
        ON CONFLICT (subscription_id, dedup_key) DO NOTHING),
    {AUDIT} SELECT {SUBSCRIPTION} FROM stored"""
LIST_SUBSCRIPTIONS = f"SELECT {SUBSCRIPTION} FROM push_subscriptions WHERE user_id = %(user)s ORDER BY id"
EVENT = "id, occurred_at, user_id, kind, payload, request_id"
ADD_EVENT = f"""
    INSERT INTO app_events (user_id, kind, payload, request_id)
    VALUES (%(user)s, %(kind)s, %(payload)s, %(request_id)s) RETURNING {EVENT}"""
GET_EVENT = f"SELECT {EVENT} FROM app_events WHERE id = %(id)s"


class NotificationSettings(BaseModel):
    """The notifications that a user wants."""

    model_config = ConfigDict(extra="forbid")
    parking_alerts: bool = True
    outing_alerts: bool = True
    min_free_spaces: int = Field(default=10, ge=0, le=10_000)


class PushSubscription(BaseModel):
    """A browser's push subscription (W3C Push API)."""

    model_config = ConfigDict(extra="forbid")
    user: str = Field(pattern=USER_PATTERN)
    endpoint: str = Field(pattern=r"^https://[^\s]+$", max_length=2048)
    p256dh: str = Field(min_length=1, max_length=256)
    auth: str = Field(min_length=1, max_length=128)


class Event(BaseModel):
    """Something that happened in the app."""

    model_config = ConfigDict(extra="forbid")
    user: str | None = Field(default=None, pattern=USER_PATTERN)
    kind: str = Field(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")
    payload: dict[str, Any] = {}

    @field_validator("payload")
    @classmethod
    def _small(cls, payload: dict[str, Any]) -> dict[str, Any]:
        if _deeper_than(EVENT_MAX_DEPTH, payload):
            raise ValueError(f"nested deeper than {EVENT_MAX_DEPTH} levels")
        if len(json.dumps(payload)) > EVENT_MAX_BYTES:
            raise ValueError(f"larger than {EVENT_MAX_BYTES} bytes as JSON")
        return payload


def _deeper_than(levels: int, value: Any) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper_than(levels - 1, child) for child in children)


class Service:
    """What the handlers share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.started = time.monotonic()
        self.db = Database(settings, "api", POOL_SIZE, DATABASE_TIMEOUT_S)
        self.cache = Cache(settings)
        self.probe = health.Probe(settings)


def service(request: Request) -> Service:
    """Return the service of this request's application."""
    found: Service = request.app.state.service
    return found


@router.get("/api/livez")
async def livez() -> dict[str, str]:
    """The process runs. Depends on nothing else: a restart would not fix a database."""
    return {"status": "ok"}


@router.get("/api/readyz")
async def readyz(request: Request) -> Response:
    """The database answers. Workers and cache do not count: users can be served without them."""
    probe = service(request).probe
    ready = await probe.ask(READINESS_BUDGET_S) is not None or probe.waiting_s < READINESS_GRACE_S
    return JSONResponse({"status": "ok" if ready else "fail", "db": "ok" if ready else "down"}, 200 if ready else 503)


@router.get("/api/health")
async def get_health(request: Request) -> Response:
    """The verdict for monitors; never used to route traffic."""
    own = service(request)
    ages = await own.probe.ask(own.settings.health_budget_ms / 1000)
    status, body = health.verdict(ages, time.monotonic() - own.started, own.settings.heartbeat_max_age_s)
    return JSONResponse(body, status)


@router.get("/metrics")
async def get_metrics() -> Response:
    """For Prometheus; the ingress answers 404 instead."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/parking")
async def get_parking(request: Request) -> Response:
    """The parking screen."""
    return await _screen(request, "parking")


@router.get("/api/outing")
async def get_outing(request: Request) -> Response:
    """The outing screen."""
    return await _screen(request, "outing")


async def _screen(request: Request, name: str) -> Response:
    own = service(request)
    body = await views.show(name, own.db, own.cache, own.settings)
    return JSONResponse(body) if body else unavailable("no data")


@router.put("/api/settings/{user}")
async def put_settings(request: Request, user: User, body: NotificationSettings) -> Row:
    """Create or replace a user's notification settings."""
    return await _one(request, PUT_SETTINGS, user=user, action="settings put", **body.model_dump())


@router.get("/api/settings/{user}")
async def get_settings(request: Request, user: User) -> Row:
    """A user's notification settings."""
    return await _one(request, GET_SETTINGS, user=user)


@router.post("/api/push-subscriptions", status_code=201)
async def add_subscription(request: Request, body: PushSubscription) -> Row:
    """Create a push subscription; the same endpoint again replaces its keys."""
    welcome = Jsonb({"title": "Notifications are on"})
    return await _one(request, ADD_SUBSCRIPTION, action="subscription put", payload=welcome, **body.model_dump())


@router.get("/api/push-subscriptions/{user}")
async def list_subscriptions(request: Request, user: User) -> list[Row]:
    """A user's push subscriptions, without their keys."""
    return await service(request).db.fetch(LIST_SUBSCRIPTIONS, user=user)


@router.post("/api/events", status_code=201)
async def add_event(request: Request, body: Event) -> Row:
    """Store an event."""
    return await _one(request, ADD_EVENT, **body.model_dump() | {"payload": Jsonb(body.payload)})


@router.get("/api/events/{event_id}")
async def get_event(request: Request, event_id: Annotated[int, Path(ge=1, lt=2**63)]) -> Row:
    """One event."""
    return await _one(request, GET_EVENT, id=event_id)


async def _one(request: Request, sql: str, **values: Any) -> Row:
    rows = await service(request).db.fetch(sql, request_id=request_id(), **values)
    if not rows:
        raise HTTPException(404, "Not Found")
    return rows[0]


def unavailable(reason: str) -> Response:
    """Return 503 with a hint when to come back."""
    return JSONResponse({"status": "unavailable", "detail": reason}, 503, headers={"Retry-After": "10"})


async def _unavailable(_request: Request, error: Exception) -> Response:
    log.warning("database unavailable", reason=str(error))
    return unavailable("database unavailable")


async def _not_storable(_request: Request, _error: Exception) -> Response:
    # A NUL character, half of a surrogate pair, NaN or 1e309: JSON parsers take them, PostgreSQL does not.
    return JSONResponse({"detail": "contains a value that cannot be stored"}, 422)


async def _not_valid(_request: Request, error: RequestValidationError) -> Response:
    """Return the first errors, without the input: it may be large, secret, or impossible to write as JSON."""
    errors = [
        {"type": each["type"], "loc": [_short(part) for part in each["loc"]], "msg": _short(each["msg"])}
        for each in error.errors()[:ERRORS_MAX]
    ]
    return JSONResponse({"detail": errors}, 422)


def _short(text: object) -> str:
    return str(text)[:200].encode("utf-8", "replace").decode()


def create_app(settings: Settings) -> FastAPI:
    """Return the application; it opens its connections when it starts and closes them when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        own = app.state.service = Service(settings)
        await own.db.open()
        # Connects now: the first monitor that asks should not have to wait for that.
        await own.probe.ask(READINESS_BUDGET_S)
        log.info("service started", version=settings.version, port=settings.api_port)
        yield
        await own.cache.close()
        await own.probe.close()
        await own.db.close()
        log.info("service stopped")

    # No generated documentation pages: they would load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(psycopg.DataError, _not_storable)
    app.exception_handler(RequestValidationError)(_not_valid)
    app.add_middleware(RequestMiddleware)
    return app


def openapi() -> dict[str, Any]:
    """Return the shape of the API. It is not served: CI compares it with the committed one."""
    app = FastAPI(title="parking", version="1", openapi_url=None)
    app.include_router(router)
    return app.openapi()


def serve(settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT, then finish the requests that have begun. False if it could not start."""
    # uvicorn raises the signal again after its shutdown: without this the process would die before its exit handlers
    # (Sentry sends what is queued) have run.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.api_host,
            port=settings.api_port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=15,
        )
    )
    # uvicorn exits by itself when it cannot listen; the caller reports it as every other process does.
    with contextlib.suppress(SystemExit):
        server.run()
    return bool(server.started)
