"""All tables, by data class.

The rule for what follows: expand, then contract. A release only adds (nullable columns, tables, indexes), so that the
release before it keeps working while both run; what nobody uses any more is dropped one release later.

The class of each table is its comment, so that a restored database can say itself what it holds.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE notification_settings (
    user_id text PRIMARY KEY,
    parking_alerts boolean NOT NULL,
    outing_alerts boolean NOT NULL,
    min_free_spaces integer NOT NULL CHECK (min_free_spaces >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE push_subscriptions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text NOT NULL,
    endpoint text NOT NULL,
    p256dh text NOT NULL,
    auth text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, endpoint)
);

CREATE TABLE app_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    user_id text,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    request_id text
);
CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    user_id text NOT NULL,
    action text NOT NULL,
    request_id text
);
-- No foreign key to parking_lots: evidence must be restorable without what can be collected again.
CREATE TABLE forecasts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lot_id text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    target_at timestamptz NOT NULL,
    predicted_free integer NOT NULL,
    UNIQUE (lot_id, target_at)
);
CREATE TABLE backtests (
    forecast_id bigint PRIMARY KEY REFERENCES forecasts (id),
    actual_free integer NOT NULL,
    error integer NOT NULL,
    scored_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE parking_lots (
    id text PRIMARY KEY,
    name text NOT NULL,
    capacity integer NOT NULL CHECK (capacity > 0)
);
CREATE TABLE parking_observations (
    lot_id text NOT NULL REFERENCES parking_lots (id),
    observed_at timestamptz NOT NULL,
    free integer NOT NULL CHECK (free >= 0),
    PRIMARY KEY (lot_id, observed_at)
);
CREATE TABLE districts (
    id text PRIMARY KEY,
    name text NOT NULL
);
CREATE TABLE weather_observations (
    district_id text NOT NULL REFERENCES districts (id),
    observed_at timestamptz NOT NULL,
    temperature_c real NOT NULL,
    rain_mm real NOT NULL CHECK (rain_mm >= 0),
    air_quality integer NOT NULL CHECK (air_quality >= 0),
    PRIMARY KEY (district_id, observed_at)
);

CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id bigint NOT NULL REFERENCES push_subscriptions (id) ON DELETE CASCADE,
    dedup_key text NOT NULL,
    request_id text,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    failed_at timestamptz,
    last_error text,
    UNIQUE (subscription_id, dedup_key)
);
CREATE INDEX outbox_pending ON outbox (next_attempt_at) WHERE delivered_at IS NULL AND failed_at IS NULL;

CREATE TABLE worker_heartbeats (
    worker text PRIMARY KEY,
    beat_at timestamptz NOT NULL,
    last_success_at timestamptz,
    last_status text,
    stale_threshold_s integer NOT NULL
);
"""

DATA_CLASSES = {
    "must recover": ["notification_settings", "push_subscriptions"],
    "evidence": ["app_events", "audit_log", "forecasts", "backtests"],
    "rebuildable": ["parking_lots", "parking_observations", "districts", "weather_observations"],
    "outbox": ["outbox"],
    "operational": ["worker_heartbeats", "schema_version"],
}


def upgrade() -> None:
    op.execute(TABLES)
    for data_class, tables in DATA_CLASSES.items():
        for table in tables:
            op.execute(f"COMMENT ON TABLE {table} IS 'data class: {data_class}'")
