"""Checks of the example service: health endpoints, screens, workers, and its behaviour during outages."""

from __future__ import annotations

import json
import re
import secrets as random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from tests.verify.conftest import eventually

WORKERS = ("ingest", "forecast", "push")
POSTGRES = "postgresql@17-main.service"
SCREENS = ("/api/parking", "/api/outing")
# How long those who ask wait for an answer, seconds; the edge asks for readiness.
PATIENCE_S = {"livez": 1, "readyz": 2, "health": 1}
# WORKER_STALE_S of the service's settings, seconds.
STALE_S = 600
JSON_BODY = ("--header", "Content-Type: application/json", "--data")


@dataclass(frozen=True)
class Written:
    """A set of writes: user, request id, what they stored, and the status codes of the answers."""

    user: str
    request_id: str
    endpoint: str
    codes: list[int]


@pytest.fixture(scope="session")
def api(direct):
    """Return a function that sends a request to the API on the machine itself."""
    return direct


@pytest.fixture(scope="session")
def database(service):
    """Return the name of the service's database."""
    return service.file.postgres.database


@pytest.fixture(scope="session")
def health(api):
    """Return a function that calls the health endpoint as a monitor does."""
    return lambda: api("/api/health", timeout_s=PATIENCE_S["health"])


@pytest.fixture(scope="session")
def ready(api, health):
    """Wait until the service is healthy and its screens have data."""

    def well():
        return health().code == 200 and all(api(screen).code == 200 for screen in SCREENS)

    assert eventually(well, within_s=90, every_s=0.5), f"not well: {health()}"


@pytest.fixture(scope="session")
def written(ready, api, as_service):
    """A write of each class with one request id, made early: the worker has acted on it when a check asks."""
    user = f"verify-{random.token_hex(6)}"
    identifier = f"verify-{random.token_hex(8)}"
    wish = {"parking_alerts": False, "outing_alerts": True, "min_free_spaces": 4321}
    subscription = {"user": user, "endpoint": f"https://push.invalid/{user}", "p256dh": "k", "auth": "a"}
    event = {"user": user, "kind": "verify", "payload": {"mark": identifier}}
    request = ("--header", f"X-Request-ID: {identifier}")
    try:
        answers = [
            api(f"/api/settings/{user}", *request, "--request", "PUT", *JSON_BODY, json.dumps(wish)),
            api("/api/push-subscriptions", *request, *JSON_BODY, json.dumps(subscription)),
            api("/api/events", *request, *JSON_BODY, json.dumps(event)),
        ]
        yield Written(user, identifier, subscription["endpoint"], [answer.code for answer in answers])
    finally:
        as_service(
            f"""DELETE FROM notification_settings WHERE user_id = '{user}';
                DELETE FROM push_subscriptions WHERE user_id = '{user}';
                DELETE FROM app_events WHERE user_id = '{user}';
                DELETE FROM audit_log WHERE user_id = '{user}'"""
        )


@pytest.fixture(scope="session")
def probes(api):
    """Return a function for the status codes of the three endpoints; 0 if an answer takes too long."""
    return lambda: {name: api(f"/api/{name}", timeout_s=limit).code for name, limit in PATIENCE_S.items()}


@pytest.fixture(scope="session")
def all_well(api, probes):
    """Return a function that waits up to a minute until endpoints and screens answer as expected."""

    def well():
        return set(probes().values()) == {200} and all(api(screen).code == 200 for screen in SCREENS)

    return lambda: eventually(well, within_s=60)


@pytest.fixture(scope="session")
def metric(service):
    """Return a function for the value of a metric, summed over the API's processes; 0 if it does not exist."""

    def read(sample):
        found = re.findall(rf"^{re.escape(sample)} (\S+)$", service.metrics("api"), re.MULTILINE)
        return sum(map(float, found))

    return read


@pytest.fixture(scope="session")
def log_lines(service):
    """Return a function for the service's last log lines that contain a text."""

    def find(text=""):
        return [json.loads(line) for line in service.log() if text in line]

    return find


@pytest.fixture(scope="session")
def aged(api, as_cache_user, ready, service):
    """Make the cached screens half an hour older, so that they are used only as a fallback."""

    def age():
        for screen in SCREENS:
            key = f"{service.file.name}:{screen.rpartition('/')[2]}"

            def held(screen=screen, key=key):
                api(screen)
                return as_cache_user(f"GET {key}")

            # Where Redis was just away, the API leaves it alone for some seconds.
            entry = json.loads(eventually(held, within_s=15, every_s=0.2)[0])
            for part in (entry, *entry["items"]):
                for name in {"generated_at", "observed_at"} & set(part):
                    part[name] = (datetime.fromisoformat(part[name]) - timedelta(minutes=30)).isoformat()
            assert as_cache_user(f"SET {key} {json.dumps(json.dumps(entry))} EX 600") == ["OK"]

    return age


@pytest.fixture(scope="session")
def outage(aged, api, disturb, probes, all_well):
    """Return the service's answers while PostgreSQL is stopped, and whether it recovers."""
    for screen in SCREENS:
        api(screen)  # fills the cache
    disturb(f"systemctl stop {POSTGRES}")
    try:
        aged()  # after the stop: nothing can refresh the cache now
        seen = eventually(lambda: (found := probes())["health"] == 503 and found, within_s=15)
        verdict = api("/api/health")
        with ThreadPoolExecutor() as pool:
            write = pool.submit(lambda: api("/api/settings/verify", "--request", "PUT", *JSON_BODY, "{}"))
            screens = dict(zip(SCREENS, pool.map(api, SCREENS), strict=True))
    finally:
        disturb(f"systemctl start {POSTGRES}")
    back = all_well() and eventually(lambda: all(api(x).json()["status"] != "stale" for x in SCREENS), within_s=15)
    return {"seen": seen, "verdict": verdict, "write": write.result(), "screens": screens, "back": back}


@pytest.fixture(scope="session")
def stall(api, disturb, probes, ready, all_well, as_service, service):
    """Return the service's answers while a worker is stopped and its last heartbeat is old."""
    worker = "forecast"
    service.stop(disturb, worker)
    try:
        age = STALE_S + 60
        as_service(f"UPDATE worker_heartbeats SET beat_at = now() - interval '{age} s' WHERE worker = '{worker}'")
        seen, verdict = probes(), api("/api/health").json()
        screens = {screen: api(screen).code for screen in SCREENS}
    finally:
        service.start(disturb, worker)
    return {"worker": worker, "seen": seen, "verdict": verdict, "screens": screens, "back": all_well()}


def test_writes_of_each_class_reach_the_database(written, sql, database):
    """Writes of each data class are stored in the database.

    With the id of their request.
    """
    assert written.codes == [200, 201, 201]
    query = f"""SELECT json_build_object(
        'must recover', (SELECT min_free_spaces FROM notification_settings WHERE user_id = '{written.user}'),
        'also', (SELECT endpoint FROM push_subscriptions WHERE user_id = '{written.user}'),
        'evidence', (SELECT request_id FROM app_events WHERE payload->>'mark' = '{written.request_id}'),
        'audit', (SELECT count(*) FROM audit_log WHERE request_id = '{written.request_id}'),
        'outbox', (SELECT count(*) FROM outbox WHERE request_id = '{written.request_id}'))"""
    assert json.loads(sql(query, database)) == {
        "must recover": 4321,
        "also": written.endpoint,
        "evidence": written.request_id,
        "audit": 2,
        "outbox": 1,
    }


def test_the_three_endpoints_answer_within_their_time(ready, probes, health):
    """The three health endpoints answer within their time limits."""
    assert probes() == {"livez": 200, "readyz": 200, "health": 200}
    verdict = health().json()
    assert set(verdict) == {"status", "db", "worker", "uptime_s"}
    assert (verdict["status"], verdict["db"], verdict["worker"]) == ("ok", "ok", "ok")
    assert verdict["uptime_s"] > 0


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_says_how_old_its_data_is(ready, api, screen):
    """A screen shows how old its data is."""
    body = api(screen).json()
    assert body["status"] in ("ok", "degraded")
    assert body["freshness"]["class"] in ("fresh", "aging")
    now = datetime.now(UTC)
    for moment in (body["generated_at"], body["observed_at"]):
        assert abs((now - datetime.fromisoformat(moment)).total_seconds()) < 3600
    assert body["items"]
    assert all(item["freshness"]["class"] for item in body["items"])


def test_every_worker_has_succeeded_lately(ready, sql, database):
    """Every worker has succeeded recently."""
    query = """SELECT worker FROM worker_heartbeats
               WHERE last_success_at > now() - make_interval(secs => stale_threshold_s) ORDER BY worker"""
    assert eventually(lambda: sql(query, database).split() == sorted(WORKERS), within_s=75, every_s=1)


def test_the_cache_is_hit(ready, api, metric):
    """Repeated requests are answered from the cache."""
    sample = 'cache_hits_total{screen="parking"}'

    def is_hit():
        before = metric(sample)
        api("/api/parking")
        return metric(sample) > before

    # Not at each try: what a worker collects in between takes the old answer out of the cache, and where Redis was just
    # away the API leaves it alone for some seconds.
    assert eventually(is_hit, within_s=15, every_s=0.2)


@pytest.mark.late
def test_a_write_can_be_followed_by_its_request_id_to_the_worker_that_acts_on_it(written, log_lines):
    """A write can be traced by its request id from the API to the worker."""

    def logged_by(part):
        return [line for line in log_lines(written.request_id) if line["service"] == part]

    assert logged_by("api")
    assert eventually(lambda: logged_by("push"), within_s=15), "the push worker did not say anything with its id"


def test_every_line_of_the_log_is_json_with_what_a_search_needs(ready, log_lines):
    """Every log line of the service is JSON with the fields that searches need."""
    lines = log_lines()
    assert {line["service"] for line in lines} >= {"api", "ingest", "forecast"}
    for line in lines:
        assert {"timestamp", "level", "service", "request_id", "message"} <= set(line), line
        assert line["level"] in ("DEBUG", "INFO", "WARN", "ERROR", "CRITICAL")
        assert datetime.fromisoformat(line["timestamp"]).tzinfo


def test_metrics_are_those_that_alerts_need(ready, service):
    """The service has the metrics that the alerts need."""
    own = "\n" + service.metrics("api")
    for name in ("http_request_duration_seconds_bucket", "cache_hits_total", "cache_misses_total"):
        assert f"\n{name}{{" in own, name
    assert 'circuit_breaker_state{service="postgres"} 0.0' in own
    workers = "\n".join(map(service.metrics, WORKERS))
    for worker in WORKERS:
        last = re.search(rf'^job_last_success_timestamp_seconds{{job_name="{worker}"}} (\S+)$', workers, re.MULTILINE)
        assert last, worker
        assert float(last[1]) > 0, worker
        assert f'job_duration_seconds_count{{job_name="{worker}"}}' in workers
    assert "\noutbox_pending " in workers


def test_without_the_database_it_says_so_and_lives_on(outage):
    """Without the database the service reports it and keeps running."""
    assert outage["seen"], "the verdict did not turn"
    assert outage["seen"] == {"livez": 200, "readyz": 503, "health": 503}
    assert outage["verdict"].json()["db"] == "down"
    assert outage["write"].code == 503
    assert int(outage["write"].headers["retry-after"]) > 0


@pytest.mark.parametrize("screen", SCREENS)
def test_without_the_database_a_screen_shows_what_it_had_and_how_old_that_is(outage, screen):
    """Without the database a screen shows older data and its age."""
    answer = outage["screens"][screen]
    assert answer.code == 200
    body = answer.json()
    assert (body["status"], body["freshness"]["class"]) == ("stale", "stale")
    assert 1800 <= body["freshness"]["age_s"] < 3600
    assert body["items"]


def test_it_recovers_when_the_database_is_back(outage):
    """The service recovers when the database is available again."""
    assert outage["back"], "not back within a minute"


def test_a_stalled_worker_shows_in_the_verdict_and_nowhere_else(stall):
    """A stalled worker makes the health check fail, but not the API."""
    assert stall["seen"] == {"livez": 200, "readyz": 200, "health": 503}
    assert stall["screens"] == dict.fromkeys(SCREENS, 200)
    assert stall["verdict"]["worker"] == f"stale: {stall['worker']}"
    assert stall["verdict"]["db"] == "ok"


def test_the_verdict_recovers_with_the_worker(stall):
    """The health check recovers when the worker runs again."""
    assert stall["back"], "not back within a minute"


def test_a_database_that_hangs_does_not_hang_the_service(disturb, probes, health, all_well, ready):
    """A database that does not respond does not block the service."""
    disturb(f"systemctl kill -s STOP {POSTGRES}")
    try:
        # Readiness forgives one slow answer.
        found = eventually(lambda: (seen := probes())["readyz"] == 503 and seen, within_s=15)
        verdict = health().json()
    finally:
        disturb(f"systemctl kill -s CONT {POSTGRES}")
    assert found == {"livez": 200, "readyz": 503, "health": 503}
    assert verdict["db"] == "down"
    assert all_well()


def test_without_the_cache_only_speed_is_lost(api, disturb, probes, ready):
    """Without the cache the service still answers every request."""
    disturb("systemctl stop redis-server")
    try:
        found = [*probes().values(), *(api(screen).code for screen in SCREENS)]
    finally:
        disturb("systemctl start redis-server")
    assert set(found) == {200}, found
