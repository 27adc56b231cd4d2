"""The HTTP API. Three audiences: probes (livez, readyz), monitors (health, metrics), users (everything else)."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Path, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from minipc_workload import health, user_data
from minipc_workload.cache import Cache
from minipc_workload.database import Database, HeartbeatReader
from minipc_workload.errors import DatabaseUnavailableError
from minipc_workload.freshness import Limits
from minipc_workload.middleware import RequestMiddleware
from minipc_workload.screens import Screen, outing, parking
from minipc_workload.screens.answering import show
from minipc_workload.settings import Settings

log = logging.getLogger(__name__)
router = APIRouter()

# A user's request must be answered while they still look at the screen.
DATABASE_TIMEOUT_S = 1.5
POOL_SIZE = 8
# Readiness may take its time: a busy machine is no reason to take the API out of service. Kubelets wait 1 s.
READINESS_BUDGET_S = 0.8
# One slow answer is no outage: the edge would refuse all writes until it asks again.
READINESS_GRACE_S = 3.0
EVENT_MAX_BYTES = 16_384
EVENT_MAX_DEPTH = 20

USER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
User = Annotated[str, Path(pattern=USER_PATTERN)]


class NotificationSettings(BaseModel):
    """What a user wants to be told."""

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
        self.heartbeats = HeartbeatReader(settings)
        self.probe = health.Probe(self.heartbeats.ages_s)

    async def show(self, screen: Screen) -> Response:
        """The screen's answer, 503 when there is nothing at all to show."""
        limits = Limits(self.settings.fresh_s, self.settings.stale_s)
        body = await show(screen, self.db, self.cache, limits, self.settings.cache_ttl_s)
        return JSONResponse(body) if body else unavailable("no data")


def unavailable(reason: str) -> Response:
    """503 with a hint when to come back."""
    return JSONResponse({"status": "unavailable", "detail": reason}, 503, headers={"Retry-After": "10"})


def service(request: Request) -> Service:
    """The service of this request's application."""
    found: Service = request.app.state.service
    return found


@router.get("/api/livez")
async def livez() -> dict[str, str]:
    """The process runs. Depends on nothing else: restarting it would not mend a database."""
    return {"status": "ok"}


@router.get("/api/readyz")
async def readyz(request: Request) -> Response:
    """The database answers. Workers and cache don't count: users can be served without them."""
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
async def metrics() -> Response:
    """For Prometheus; the edge answers 404 in its place."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/parking")
async def get_parking(request: Request) -> Response:
    """The parking screen."""
    return await service(request).show(parking.SCREEN)


@router.get("/api/outing")
async def get_outing(request: Request) -> Response:
    """The outing screen."""
    return await service(request).show(outing.SCREEN)


@router.put("/api/settings/{user}")
async def put_settings(request: Request, user: User, body: NotificationSettings) -> user_data.Row:
    """Creates or replaces a user's notification settings."""
    return await service(request).db.run(lambda db: user_data.put_settings(db, user, body.model_dump()))


@router.get("/api/settings/{user}")
async def get_settings(request: Request, user: User) -> user_data.Row:
    """A user's notification settings."""
    return _found(await service(request).db.run(lambda db: user_data.get_settings(db, user)))


@router.post("/api/push-subscriptions", status_code=201)
async def add_subscription(request: Request, body: PushSubscription) -> user_data.Row:
    """Creates a push subscription; the same endpoint again renews its keys."""
    return await service(request).db.run(lambda db: user_data.add_subscription(db, body.model_dump()))


@router.get("/api/push-subscriptions/{user}")
async def list_subscriptions(request: Request, user: User) -> list[user_data.Row]:
    """A user's push subscriptions, without their keys."""
    return await service(request).db.run(lambda db: user_data.list_subscriptions(db, user))


@router.post("/api/events", status_code=201)
async def add_event(request: Request, body: Event) -> user_data.Row:
    """Stores an event."""
    return await service(request).db.run(lambda db: user_data.add_event(db, body.model_dump()))


@router.get("/api/events/{event_id}")
async def get_event(request: Request, event_id: Annotated[int, Path(ge=1, lt=2**63)]) -> user_data.Row:
    """One event."""
    return _found(await service(request).db.run(lambda db: user_data.get_event(db, event_id)))


def _found(row: user_data.Row | None) -> user_data.Row:
    if row is None:
        raise HTTPException(404, "there is none")
    return row


async def _database_unavailable(_request: Request, error: Exception) -> Response:
    log.warning("database unavailable", extra={"reason": str(error)})
    return unavailable("database unavailable")


async def _not_storable(_request: Request, _error: Exception) -> Response:
    # A NUL character, half a surrogate pair, NaN: JSON takes them, PostgreSQL does not.
    return JSONResponse({"detail": "holds a value that can't be stored"}, 422)


def create_app(settings: Settings) -> FastAPI:
    """The application; opens its connections when it starts and closes them when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        own = app.state.service = Service(settings)
        await own.db.open()
        # Connects now: the first monitor that asks should not have to wait for that.
        await own.probe.ask(READINESS_BUDGET_S)
        log.info("service started", extra={"version": settings.version, "port": settings.api_port})
        yield
        await own.cache.close()
        await own.heartbeats.close()
        await own.db.close()
        log.info("service stopped")

    # No generated documentation pages: they would load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    app.add_exception_handler(DatabaseUnavailableError, _database_unavailable)
    app.add_exception_handler(psycopg.DataError, _not_storable)
    app.add_middleware(RequestMiddleware)
    return app


def openapi() -> dict[str, Any]:
    """The API's shape, which clients rely on. Not served: it is compared in CI."""
    app = FastAPI(title="workload", version="1", openapi_url=None)
    app.include_router(router)
    return app.openapi()


def serve(settings: Settings) -> bool:
    """Serves until SIGTERM or SIGINT, then finishes the requests under way. False when it could not start."""
    # uvicorn raises the signal again once it has shut down: without this the process would die of it before its
    # exit handlers (Sentry's flush) have run.
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
    # When it can't listen, uvicorn says why and exits by itself; the caller says it as every other process does.
    with contextlib.suppress(SystemExit):
        server.run()
    return bool(server.started)
