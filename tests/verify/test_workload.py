"""The service: its three endpoints, its two screens, its three workers; what it does when something else is down."""

from __future__ import annotations

import json
import re
import secrets as random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from tests.verify.conftest import eventually, not_exercised
from tests.verify.service import PARTS, WORKERS

POSTGRES = "postgresql@17-main.service"
SCREENS = ("/api/parking", "/api/outing")
# How long those who ask wait for an answer, seconds; the edge asks for readiness.
PATIENCE_S = {"livez": 1, "readyz": 2, "health": 1}
JSON_BODY = ("--header", "Content-Type: application/json", "--data")


@dataclass(frozen=True)
class Written:
    """Who wrote, with which request id, what it left, and the answers' status codes."""

    user: str
    request_id: str
    endpoint: str
    codes: list[int]


@pytest.fixture(scope="session", autouse=True)
def _is_here(service):
    """NOT EXERCISED where it isn't deployed."""


@pytest.fixture(scope="session")
def stand_in(settings):
    """For what only units of systemd have."""
    if settings.workload.runtime != "stand-in":
        not_exercised(f"the service runs in {settings.workload.runtime}, not under systemd")


@pytest.fixture(scope="session")
def pods(settings, service):
    """All pods of the service that are not ending."""
    if settings.workload.runtime != "k3s":
        not_exercised(f"the service runs as a {settings.workload.runtime}, not in pods")
    return {part: service.pods(part) for part in PARTS}


@pytest.fixture(scope="session")
def health(api):
    """Asks for the verdict, as a monitor does."""
    return lambda: api("/api/health", timeout_s=PATIENCE_S["health"])


@pytest.fixture(scope="session")
def ready(api, health):
    """The service once it is well: the screens have data, the verdict is good."""

    def well():
        return health().code == 200 and all(api(screen).code == 200 for screen in SCREENS)

    assert eventually(well, within_s=90, every_s=0.5), f"not well: {health()}"


@pytest.fixture(scope="session")
def written(ready, api, sql):
    """A write of each class with one request id, made early: the worker has acted on it when a check asks."""
    user = f"verify-{random.token_hex(6)}"
    identifier = f"verify-{random.token_hex(8)}"
    wish = {"parking_alerts": False, "outing_alerts": True, "min_free_spaces": 4321}
    subscription = {"user": user, "endpoint": f"https://push.invalid/{user}", "p256dh": "k", "auth": "a"}
    event = {"user": user, "kind": "verify.workload", "payload": {"mark": identifier}}
    request = ("--header", f"X-Request-ID: {identifier}")
    try:
        answers = [
            api(f"/api/settings/{user}", *request, "--request", "PUT", *JSON_BODY, json.dumps(wish)),
            api("/api/push-subscriptions", *request, *JSON_BODY, json.dumps(subscription)),
            api("/api/events", *request, *JSON_BODY, json.dumps(event)),
        ]
        yield Written(user, identifier, subscription["endpoint"], [answer.code for answer in answers])
    finally:
        sql(
            f"""DELETE FROM notification_settings WHERE user_id = '{user}';
                DELETE FROM push_subscriptions WHERE user_id = '{user}';
                DELETE FROM app_events WHERE user_id = '{user}';
                DELETE FROM audit_log WHERE user_id = '{user}'""",
            "workload",
        )


@pytest.fixture(scope="session")
def probes(api):
    """Status codes of the three endpoints at the moment of the call, 0 for one that lets its callers wait too long."""
    return lambda: {name: api(f"/api/{name}", timeout_s=limit).code for name, limit in PATIENCE_S.items()}


@pytest.fixture(scope="session")
def all_well(api, probes):
    """Whether the three endpoints and the screens answer as they should, as soon as they do within a minute."""

    def well():
        return set(probes().values()) == {200} and all(api(screen).code == 200 for screen in SCREENS)

    return lambda: eventually(well, within_s=60)


@pytest.fixture(scope="session")
def metric(service):
    """Value of a metric by its name and labels, summed over the API's processes; 0 when it isn't there."""

    def read(sample):
        found = re.findall(rf"^{re.escape(sample)} (\S+)$", service.metrics("api"), re.MULTILINE)
        return sum(map(float, found))

    return read


@pytest.fixture(scope="session")
def log_lines(service):
    """The service's last log lines that contain a text."""

    def find(text=""):
        return [json.loads(line) for line in service.log() if text in line]

    return find


@pytest.fixture(scope="session")
def aged(api, as_workload, ready):
    """Makes what the cache holds of each screen half an hour older, so that it is only good as a fallback."""

    def age():
        for screen in SCREENS:
            key = f"workload:{screen.rpartition('/')[2]}"

            def held(screen=screen, key=key):
                api(screen)
                return as_workload(f"GET {key}")

            # Where Redis was just away, the API leaves it alone for some seconds.
            entry = json.loads(eventually(held, within_s=15, every_s=0.2)[0])
            for part in (entry, *entry["items"]):
                for name in {"generated_at", "observed_at"} & set(part):
                    part[name] = (datetime.fromisoformat(part[name]) - timedelta(minutes=30)).isoformat()
            assert as_workload(f"SET {key} {json.dumps(json.dumps(entry))} EX 600") == ["OK"]

    return age


@pytest.fixture(scope="session")
def outage(aged, api, disturb, probes, all_well):
    """What the service says while PostgreSQL is stopped, and whether it recovers."""
    aged()
    disturb(f"systemctl stop {POSTGRES}")
    try:
        seen = eventually(lambda: (found := probes())["health"] == 503 and found, within_s=15)
        verdict = api("/api/health")
        with ThreadPoolExecutor() as pool:
            write = pool.submit(api, "/api/settings/verify", "--request", "PUT", *JSON_BODY, "{}")
            screens = dict(zip(SCREENS, pool.map(api, SCREENS), strict=True))
    finally:
        disturb(f"systemctl start {POSTGRES}")
    back = all_well() and eventually(lambda: all(api(x).json()["status"] != "stale" for x in SCREENS), within_s=15)
    return {"seen": seen, "verdict": verdict, "write": write.result(), "screens": screens, "back": back}


@pytest.fixture(scope="session")
def stall(api, disturb, probes, ready, all_well, settings, sql, service):
    """The same while a worker is stopped and its last heartbeat is old."""
    worker = "forecast"
    service.stop(disturb, worker)
    try:
        age = settings.workload.worker_stale_s + 60
        sql(f"UPDATE worker_heartbeats SET beat_at = now() - interval '{age} s' WHERE worker = '{worker}'", "workload")
        seen, verdict = probes(), api("/api/health").json()
        screens = {screen: api(screen).code for screen in SCREENS}
    finally:
        service.start(disturb, worker)
    return {"worker": worker, "seen": seen, "verdict": verdict, "screens": screens, "back": all_well()}


def test_every_process_runs(stand_in, units, service):
    for unit in map(service.unit, PARTS):
        properties = units(unit)
        assert (properties["ActiveState"], properties["UnitFileState"]) == ("active", "enabled"), unit
        assert properties["Restart"] == "always"
    assert units("workload-migrate.service")["Result"] == "success"


def test_every_process_has_only_what_it_needs(stand_in, exposure, units, sh, service):
    for unit in map(service.unit, PARTS):
        assert exposure(unit) < 2, unit
    pids = ",".join(units(service.unit(part))["MainPID"] for part in PARTS)
    assert set(sh(f"ps -o user= -p {pids}").split()) == {"workload"}


def test_its_secrets_are_readable_by_root_only(stand_in, sh):
    assert sh("stat -c '%U %a' /etc/workload /etc/workload/env").splitlines() == ["root 700", "root 600"]


def test_it_listens_on_loopback_only(stand_in, listeners, settings):
    ports = {settings.workload.port, *settings.workload.metrics_ports.values()}
    assert {(address, port) for address, port, _ in listeners if port in ports} == {
        ("127.0.0.1", port) for port in ports
    }


def test_every_part_has_its_pods(pods, ready):
    counts = {
        part: sum(all(each["ready"] for each in pod["status"]["containerStatuses"]) for pod in found)
        for part, found in pods.items()
    }
    assert counts == {"api": 2, **dict.fromkeys(WORKERS, 1)}


def test_every_pod_has_only_what_it_needs(pods):
    for pod in (pod for found in pods.values() for pod in found):
        spec = pod["spec"]
        (container,) = spec["containers"]
        security = container["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"], pod["metadata"]["name"]
        assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert spec["automountServiceAccountToken"] is False
        assert container["image"].startswith("minipc.local/workload:")


def test_no_password_is_in_the_environment_of_a_pod(pods, secrets):
    for pod in (pod for found in pods.values() for pod in found):
        for secret in ("postgres.password.workload", "redis.password.workload"):
            assert secrets[secret].reveal() not in json.dumps(pod)


def test_writes_of_each_class_reach_the_database(written, sql):
    """And carry their request's id."""
    assert written.codes == [200, 201, 201]
    query = f"""SELECT json_build_object(
        'must recover', (SELECT min_free_spaces FROM notification_settings WHERE user_id = '{written.user}'),
        'also', (SELECT endpoint FROM push_subscriptions WHERE user_id = '{written.user}'),
        'evidence', (SELECT request_id FROM app_events WHERE payload->>'mark' = '{written.request_id}'),
        'audit', (SELECT count(*) FROM audit_log WHERE request_id = '{written.request_id}'),
        'outbox', (SELECT count(*) FROM outbox WHERE request_id = '{written.request_id}'))"""
    assert json.loads(sql(query, "workload")) == {
        "must recover": 4321,
        "also": written.endpoint,
        "evidence": written.request_id,
        "audit": 2,
        "outbox": 1,
    }


def test_the_three_endpoints_answer_within_their_time(ready, probes, health):
    assert probes() == {"livez": 200, "readyz": 200, "health": 200}
    verdict = health().json()
    assert set(verdict) == {"status", "db", "worker", "uptime_s"}
    assert (verdict["status"], verdict["db"], verdict["worker"]) == ("ok", "ok", "ok")
    assert verdict["uptime_s"] > 0


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_says_how_old_its_data_is(ready, api, screen):
    body = api(screen).json()
    assert body["status"] in ("ok", "degraded")
    assert body["freshness"]["class"] in ("fresh", "aging")
    now = datetime.now(UTC)
    for moment in (body["generated_at"], body["observed_at"]):
        assert abs((now - datetime.fromisoformat(moment)).total_seconds()) < 3600
    assert body["items"]
    assert all(item["freshness"]["class"] for item in body["items"])


def test_every_worker_has_succeeded_lately(ready, sql):
    query = """SELECT worker FROM worker_heartbeats
               WHERE last_success_at > now() - make_interval(secs => stale_threshold_s) ORDER BY worker"""
    assert eventually(lambda: sql(query, "workload").split() == sorted(WORKERS), within_s=75, every_s=1)


def test_the_cache_is_hit(ready, api, metric):
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
    def logged_by(part):
        return [line for line in log_lines(written.request_id) if line["service"] == part]

    assert logged_by("api")
    assert eventually(lambda: logged_by("push"), within_s=15), "the push worker did not say anything with its id"


def test_every_line_of_the_log_is_json_with_what_a_search_needs(ready, log_lines):
    lines = log_lines()
    assert {line["service"] for line in lines} >= {"api", "ingest", "forecast"}
    for line in lines:
        assert {"timestamp", "level", "service", "request_id", "message"} <= set(line), line
        assert line["level"] in ("DEBUG", "INFO", "WARN", "ERROR", "CRITICAL")
        assert datetime.fromisoformat(line["timestamp"]).tzinfo


def test_metrics_are_those_that_alerts_need(ready, service):
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
    assert outage["seen"], "the verdict did not turn"
    assert outage["seen"] == {"livez": 200, "readyz": 503, "health": 503}
    assert outage["verdict"].json()["db"] == "down"
    assert outage["write"].code == 503
    assert int(outage["write"].headers["retry-after"]) > 0


@pytest.mark.parametrize("screen", SCREENS)
def test_without_the_database_a_screen_shows_what_it_had_and_how_old_that_is(outage, screen):
    answer = outage["screens"][screen]
    assert answer.code == 200
    body = answer.json()
    assert (body["status"], body["freshness"]["class"]) == ("stale", "stale")
    assert 1800 <= body["freshness"]["age_s"] < 3600
    assert body["items"]


def test_it_recovers_when_the_database_is_back(outage):
    assert outage["back"], "not back within a minute"


def test_a_stalled_worker_shows_in_the_verdict_and_nowhere_else(stall):
    assert stall["seen"] == {"livez": 200, "readyz": 200, "health": 503}
    assert stall["screens"] == dict.fromkeys(SCREENS, 200)
    assert stall["verdict"]["worker"] == f"stale: {stall['worker']}"
    assert stall["verdict"]["db"] == "ok"


def test_the_verdict_recovers_with_the_worker(stall):
    assert stall["back"], "not back within a minute"


def test_a_database_that_hangs_does_not_hang_the_service(disturb, probes, health, all_well, ready):
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
    disturb("systemctl stop redis-server")
    try:
        found = [*probes().values(), *(api(screen).code for screen in SCREENS)]
    finally:
        disturb("systemctl start redis-server")
    assert set(found) == {200}, found


# --- in K3s ----------------------------------------------------------------------------------------------------------

LOOK = "systemctl start minipc-gitops-drift.service && cat /var/lib/prometheus/node-exporter/minipc_gitops.prom"


def drifted(text: str) -> int:
    """How many objects the metric says were changed by hand."""
    (line,) = [line for line in text.splitlines() if line.startswith("minipc_gitops_drift_objects ")]
    return int(line.split()[1])


def test_the_cluster_is_what_git_says(sh, pods):
    assert drifted(sh(LOOK)) == 0


def test_a_change_by_hand_is_counted(sh, disturb, pods):
    scale = "k3s kubectl -n workload scale deployment/push --replicas"
    try:
        disturb(f"{scale}=0")
        assert drifted(sh(LOOK)) == 1
    finally:
        disturb(f"{scale}=1 && k3s kubectl -n workload rollout status deployment/push --timeout 60s")
    assert drifted(sh(LOOK)) == 0
