"""The reference service: each process as it runs for real, against its own PostgreSQL and Redis.

Runs inside Debian 13 with the packages of examples/parking/packages.txt, postgresql, redis-server and python3-pytest:

    python3 -m pytest --noconftest -c /dev/null --rootdir=. examples/parking/tests/test_app.py
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg", reason="runs inside Debian 13, see the module's first lines")
pytest.importorskip("fastapi", reason="runs inside Debian 13, see the module's first lines")
httpx = pytest.importorskip("httpx")

sys.path.insert(0, str(Path(__file__).parent))
from receiver import Received, receiver  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
WORKLOAD = ROOT / "examples/parking"
PG_BIN = Path("/usr/lib/postgresql/17/bin")
WORKERS = ("ingest", "forecast", "push")
PASSWORD = 'p4ss/word with $pecial "chars" ' + secrets.token_hex(8)
SECRETS = (PASSWORD, json.dumps(PASSWORD)[1:-1], "cache-password")
TABLES_BY_CLASS = {
    "must recover": {"notification_settings", "push_subscriptions"},
    "evidence": {"app_events", "audit_log", "forecasts", "backtests"},
    "rebuildable": {"parking_lots", "parking_observations", "districts", "weather_observations"},
    "outbox": {"outbox"},
    "operational": {"worker_heartbeats", "schema_version"},
}

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(not PG_BIN.exists() or os.geteuid() != 0, reason="needs root and PostgreSQL 17"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of the condition; fails when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except (httpx.HTTPError, psycopg.Error):
            value = None
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.05)


class Postgres:
    """A throwaway cluster."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "pg"
        self.port = free_port()
        directory.chmod(0o755)
        self.data.mkdir()
        shutil.chown(self.data, "postgres", "postgres")
        password_file = directory / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        self._as_postgres(
            PG_BIN / "initdb", "-D", self.data, "-U", "parking", "--pwfile", password_file,
            "--auth=scram-sha-256", "--no-sync", "--no-instructions",
        )  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nfsync=off\n")
        self.start()
        with psycopg.connect(**self.arguments("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE parking")

    def arguments(self, database: str = "parking") -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": self.port, "user": "parking", "password": PASSWORD, "dbname": database}

    def _as_postgres(self, *command: object) -> None:
        subprocess.run(
            ["runuser", "-u", "postgres", "--", *map(str, command)],
            check=True, timeout=60, stdout=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip

    def start(self) -> None:
        self._as_postgres(PG_BIN / "pg_ctl", "-D", self.data, "-w", "-l", "/dev/null", "start")

    def stop(self) -> None:
        self._as_postgres(PG_BIN / "pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """The server and all its children are stopped by a signal, their sockets open."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[None]:
        """One more database, dropped at the end."""
        with psycopg.connect(**self.arguments("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            yield
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def signal(self, number: int) -> None:
        main = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(main)], capture_output=True, text=True, check=True)
        for pid in [main, *map(int, children.stdout.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def query(self, sql: str, *values: object, database: str = "parking") -> list[Any]:
        with psycopg.connect(**self.arguments(database), autocommit=True) as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []


class Redis:
    """A throwaway Redis with one ACL user, restricted like the real one."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.acl = directory / "users.acl"
        self.acl.write_text("user default off\nuser parking on >cache-password ~parking:* +@all -@dangerous -@admin\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--aclfile", self.acl],
            stdout=subprocess.DEVNULL,
        )
        eventually(lambda: _listens(self.port))

    def stop(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One process of the parking, its log in a file."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.url = f"http://127.0.0.1:{environment['API_PORT']}"
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "minipc_workload", *arguments],
                env=environment, stdout=file, stderr=subprocess.STDOUT, cwd="/",
            )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        """The log, parsed: a line that is not JSON fails the test."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def logged(self, message: str) -> dict[str, Any] | None:
        """The first line with exactly this message."""
        return next((line for line in self.lines() if line["message"] == message), None)

    def wait(self) -> int:
        """The exit code, once the process has ended by itself."""
        return self.popen.wait(60)

    def stop(self) -> int:
        self.popen.terminate()
        return self.wait()


class Stack:
    """PostgreSQL, Redis, and processes of the parking against them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = Postgres(directory)
        self.redis = Redis(directory)
        self.processes: list[Process] = []
        self.environment: dict[str, str] = {}
        self.reset()
        assert self.start("migrate").wait() == 0

    def reset(self) -> None:
        """New ports and default settings."""
        ports = {f"METRICS_PORT_{name}": str(free_port()) for name in ("INGEST", "FORECAST", "PUSH")}
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(WORKLOAD),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.postgres.port),
            "DATABASE_NAME": "parking",
            "DATABASE_USER": "parking",
            "DATABASE_PASSWORD": PASSWORD,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis.port),
            "REDIS_USERNAME": "parking",
            "REDIS_PASSWORD": "cache-password",
            "API_PORT": str(free_port()),
            "ENVIRONMENT": "test",
            "VERSION": "1.2.3",
            "CACHE_TTL_S": "1",
            # Generous: this machine may be busy with others. The test of the real budget sets its own.
            "HEALTH_BUDGET_MS": "2000",
            "INGEST_INTERVAL_S": "1",
            "FORECAST_INTERVAL_S": "1",
            "PUSH_INTERVAL_S": "1",
            **ports,
        }

    def start(self, *arguments: str, **environment: str) -> Process:
        log = self.directory / f"{len(list(self.directory.glob('*.log')))}-{arguments[0]}.log"
        process = Process(list(arguments), self.environment | environment, log)
        self.processes.append(process)
        return process

    def api(self, **environment: str) -> Process:
        process = self.start("api", **environment)
        eventually(lambda: httpx.get(f"{process.url}/api/livez").status_code == 200)
        return process

    def everything(self, **environment: str) -> Process:
        """The API and all workers, well."""
        api = self.api(**environment)
        for name in WORKERS:
            self.worker(name, **environment)
        eventually(lambda: httpx.get(f"{api.url}/api/health").status_code == 200)
        eventually(lambda: httpx.get(f"{api.url}/api/parking").json()["status"] == "ok")
        return api

    def worker(self, name: str, **environment: str) -> Process:
        """A worker whose first batch is through."""
        process = self.start("worker", name, **environment)
        status = "SELECT 1 FROM worker_heartbeats WHERE worker = %s AND last_status IS NOT NULL"
        eventually(lambda: self.postgres.query(status, name))
        return process

    def clear(self) -> None:
        for process in self.processes:
            process.popen.kill()
            process.popen.wait()
        self.processes.clear()
        tables = set().union(*TABLES_BY_CLASS.values()) - {"schema_version"}
        self.postgres.query(f"TRUNCATE {', '.join(tables)}")
        command = "AUTH parking cache-password\r\nDEL parking:parking parking:outing\r\n"
        with socket.create_connection(("127.0.0.1", self.redis.port)) as connection:
            connection.sendall(command.encode())
            connection.recv(1024)


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # Not under pytest's own directory: that is 0700, and PostgreSQL runs as another user.
    directory = Path("/var/tmp") / f"parking-{secrets.token_hex(4)}"
    directory.mkdir()
    stack = Stack(directory)
    yield stack
    stack.clear()
    stack.redis.stop()
    stack.postgres.stop()
    shutil.rmtree(directory)


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    shared_stack.reset()
    yield shared_stack
    shared_stack.clear()


def put_subscription(api: Process, user: str = "ada", request_id: str = "from-the-user") -> dict[str, Any]:
    body = {"user": user, "endpoint": f"https://push.example/{user}", "p256dh": "key-p", "auth": "key-a"}
    response = httpx.post(f"{api.url}/api/push-subscriptions", json=body, headers={"X-Request-ID": request_id})
    assert response.status_code == 201, response.text
    return response.json()


def metric(text: str, name: str, **labels: str) -> float | None:
    """The value of a series that has at least these labels."""
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(f'{key}="{wanted}"' in series for key, wanted in labels.items()):
            return float(value)
    return None


def worker_metrics(stack: Stack, name: str) -> str:
    return httpx.get(f"http://127.0.0.1:{stack.environment[f'METRICS_PORT_{name.upper()}']}/metrics").text


# --- schema ----------------------------------------------------------------------------------------------------------


def test_every_table_states_its_data_class(stack: Stack) -> None:
    rows = stack.postgres.query(
        """SELECT relname, obj_description(oid) FROM pg_class
           WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"""
    )
    found: dict[str, set[str]] = {}
    for table, comment in rows:
        found.setdefault((comment or "none").removeprefix("data class: "), set()).add(table)
    assert found == TABLES_BY_CLASS


def test_migrate_twice_at_once_and_with_a_newer_schema(stack: Stack) -> None:
    with stack.postgres.database("empty"):
        both = [stack.start("migrate", "--wait", "1", DATABASE_NAME="empty") for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
        assert both[0].logged("service started")
        assert both[0].logged("service stopped")
        # After a rollback the earlier version runs on the schema of the later one.
        stack.postgres.query("UPDATE schema_version SET version_num = '9999'", database="empty")
        again = stack.start("migrate", DATABASE_NAME="empty")
        assert again.wait() == 0
        assert again.logged("schema is newer than this code")["schema"] == "9999"
        assert stack.postgres.query("SELECT version_num FROM schema_version", database="empty") == [("9999",)]


def test_migrate_waits_for_the_database_alone_and_fails_with_a_reason(stack: Stack) -> None:
    process = stack.start("migrate", "--wait", "2", DATABASE_PORT="1")
    assert process.wait() == 1
    assert process.logged("waiting for the database")
    failure = process.logged("service failed")
    assert failure["level"] == "CRITICAL"
    assert "port 1" in failure["exception"]
    assert stack.start("migrate", "--wait", "2", REDIS_PORT="1").wait() == 0


def test_the_committed_shape_of_the_api_is_the_one_it_has(stack: Stack) -> None:
    """After a change: python3 -m minipc_workload openapi > openapi.json"""
    process = stack.start("openapi")
    assert process.wait() == 0
    assert json.loads(process.log.read_text()) == json.loads((ROOT / "examples/parking/openapi.json").read_text())


# --- users -----------------------------------------------------------------------------------------------------------


def test_smoke_passes_when_everything_runs_and_the_screens_state_their_age(stack: Stack) -> None:
    api = stack.api()
    assert httpx.get(f"{api.url}/api/parking").status_code == 503, "nothing was collected yet"
    stack.worker("ingest")
    assert httpx.get(f"{api.url}/api/parking").json()["status"] == "degraded", "there is no forecast yet"
    stack.worker("forecast")
    without_push = stack.start("smoke", "--url", api.url)
    assert without_push.wait() == 1
    verdict = json.loads(without_push.log.read_text())
    assert [check["name"] for check in verdict["checks"] if not check["ok"]] == ["health"]
    assert "stale: push" in without_push.log.read_text()
    stack.worker("push")
    smoke = stack.start("smoke", "--url", api.url, "--wait", "30")
    assert smoke.wait() == 0, smoke.log.read_text()
    assert len(json.loads(smoke.log.read_text())["checks"]) == 6
    for path, count in (("parking", 6), ("outing", 4)):
        body = httpx.get(f"{api.url}/api/{path}").json()
        assert (body["status"], len(body["items"]), body["freshness"]["class"]) == ("ok", count, "fresh")
        age_s = (datetime.now(UTC) - datetime.fromisoformat(body["observed_at"])).total_seconds()
        assert abs(age_s - body["freshness"]["age_s"]) < 3
        assert datetime.fromisoformat(body["generated_at"]) <= datetime.now(UTC)
    assert {item["advice"] for item in body["items"]} <= {"good", "fair", "stay in"}


def test_what_users_write_is_read_back_and_audited(stack: Stack) -> None:
    api = stack.api()
    wish = {"parking_alerts": True, "outing_alerts": False, "min_free_spaces": 7}
    assert httpx.put(f"{api.url}/api/settings/ada", json=wish).status_code == 200
    assert httpx.get(f"{api.url}/api/settings/ada").json().items() >= wish.items()
    assert httpx.get(f"{api.url}/api/settings/nobody").status_code == 404
    first, again = put_subscription(api), put_subscription(api)
    assert first["id"] == again["id"]
    assert httpx.get(f"{api.url}/api/push-subscriptions/ada").json() == [first]
    assert "auth" not in first
    event = httpx.post(f"{api.url}/api/events", json={"kind": "opened", "payload": {"screen": "parking"}}).json()
    assert httpx.get(f"{api.url}/api/events/{event['id']}").json()["payload"] == {"screen": "parking"}
    assert [row[0] for row in stack.postgres.query("SELECT action FROM audit_log ORDER BY id")] == [
        "settings put", "subscription put", "subscription put",
    ]  # fmt: skip


MANY_KEYS = json.dumps({f"key{number}": 1 for number in range(4_000)})
BAD_REQUESTS: list[tuple[str, str, Any, int]] = [
    ("PUT", "/api/settings/ada", {"min_free_spaces": -1}, 422),
    ("PUT", "/api/settings/ada", {"unknown": 1}, 422),
    ("PUT", "/api/settings/ada", '{"min_free_spaces": 1e309}', 422),
    ("PUT", "/api/settings/ada", '{"\\ud800": 1}', 422),
    ("PUT", "/api/settings/ada", MANY_KEYS, 422),
    ("PUT", "/api/settings/ada", MANY_KEYS * 2, 413),
    ("PUT", "/api/settings/-rf", {}, 422),
    ("POST", "/api/push-subscriptions", {"user": "a", "endpoint": "http://plain", "p256dh": "x", "auth": "x"}, 422),
    ("POST", "/api/push-subscriptions", {"user": "a", "endpoint": "https://x/\0", "p256dh": "x", "auth": "x"}, 422),
    ("POST", "/api/events", {"kind": "x", "payload": {"text": "y" * 20_000}}, 422),
    ("POST", "/api/events", {"kind": "x", "payload": {"text": "nul \0"}}, 422),
    ("POST", "/api/events", {"kind": "x", "payload": {"text": "half a pair \ud800"}}, 422),
    ("POST", "/api/events", '{"kind": "x", "payload": {"number": 1e309}}', 422),
    ("POST", "/api/events", {"kind": "x", "payload": json.loads('{"a":' * 40 + "1" + "}" * 40)}, 422),
    ("POST", "/api/events", "[" * 60_000, 400),
    ("POST", "/api/events", iter([b"[" * 50_000, b"[" * 50_000]), 413),
    ("GET", "/api/events/0", None, 422),
    ("GET", "/api/events/9999999999999999999999", None, 422),
    ("GET", "/metrics%0a", None, 404),
    ("GET", "/api/livez%0a", None, 404),
]


def test_bad_input_is_refused_with_a_short_answer(stack: Stack) -> None:
    api = stack.api()
    json_type = {"Content-Type": "application/json"}
    for method, path, body, status in BAD_REQUESTS:
        content = json.dumps(body) if isinstance(body, dict) else body
        response = httpx.request(method, f"{api.url}{path}", content=content, headers=json_type, timeout=30)
        assert response.status_code == status, (method, path, response.text)
        assert len(response.content) < 4_000, path
        if status == 422 and isinstance(response.json()["detail"], list):
            assert len(response.json()["detail"]) <= 10
            assert '"input":' not in response.text
    assert not [line for line in api.lines() if line["level"] in ("ERROR", "CRITICAL")]
    assert httpx.get(f"{api.url}/api/readyz").status_code == 200


# --- outages ---------------------------------------------------------------------------------------------------------


def test_the_cache_is_used_and_not_needed(stack: Stack) -> None:
    api = stack.api(CACHE_TTL_S="600")
    stack.worker("ingest")
    for _ in range(3):
        assert httpx.get(f"{api.url}/api/parking").status_code == 200
    text = httpx.get(f"{api.url}/metrics").text
    counts = [metric(text, f"cache_{name}_total", screen="parking") for name in ("misses", "hits")]
    assert counts == [1, 2]
    stack.redis.stop()
    try:
        for _ in range(6):
            assert httpx.get(f"{api.url}/api/outing").json()["status"] == "ok"
        assert httpx.get(f"{api.url}/api/readyz").status_code == 200
        assert api.logged("circuit open: redis")["level"] == "WARN"
        assert metric(httpx.get(f"{api.url}/metrics").text, "circuit_breaker_state", service="redis") == 2
    finally:
        stack.redis.start()
    eventually(lambda: httpx.get(f"{api.url}/api/outing") and api.logged("circuit closed: redis"))


def test_database_down_and_back(stack: Stack) -> None:
    api = stack.everything()
    with stack.postgres.stopped():
        health = httpx.get(f"{api.url}/api/health")
        assert health.status_code == 503
        assert health.json() | {"uptime_s": 0} == {"status": "fail", "db": "down", "worker": "unknown", "uptime_s": 0}
        assert httpx.get(f"{api.url}/api/readyz").status_code == 503
        assert httpx.get(f"{api.url}/api/livez").status_code == 200
        time.sleep(1.1)  # the cached answer is no longer current
        parking = httpx.get(f"{api.url}/api/parking", timeout=5)
        assert parking.json()["status"] in ("stale", "degraded")
        assert len(parking.json()["items"]) == 6
        write = httpx.put(f"{api.url}/api/settings/ada", json={}, timeout=5)
        assert (write.status_code, write.headers["Retry-After"]) == (503, "10")
        eventually(lambda: httpx.get(f"{api.url}/api/parking", timeout=5) and api.logged("circuit open: postgres"))
        assert api.logged("circuit open: postgres")["level"] == "WARN"
        # Processes also start without it.
        late = stack.start("worker", "ingest", METRICS_PORT_INGEST=str(free_port()))
        eventually(lambda: late.logged("heartbeat failed"))
    eventually(lambda: httpx.get(f"{api.url}/api/health").status_code == 200)
    eventually(lambda: httpx.put(f"{api.url}/api/settings/ada", json={}).status_code == 200)
    assert api.logged("circuit closed: postgres")["level"] == "INFO"
    eventually(lambda: late.logged("job finished"))


def test_a_database_that_hangs_delays_neither_health_nor_a_stop(stack: Stack) -> None:
    api = stack.everything(HEALTH_BUDGET_MS="100")
    connections = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'parking-probe'"
    with stack.postgres.hanging():
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: httpx.get(f"{api.url}/api/health", timeout=30).status_code, range(40)))
        assert answers == [503] * 40
        # The server's own figures: the clients share its processors. Waiting for the database would take seconds.
        text = httpx.get(f"{api.url}/metrics").text
        labels = {"route": "/api/health", "status": "503"}
        assert metric(text, "http_request_duration_seconds_bucket", le="1.0", **labels) == 40
        assert metric(text, "http_request_duration_seconds_bucket", le="0.2", **labels) >= 36
        assert httpx.get(f"{api.url}/api/parking", timeout=5).json()["items"]
        assert httpx.get(f"{api.url}/api/livez").status_code == 200
    eventually(lambda: httpx.get(f"{api.url}/api/readyz").status_code == 200)
    eventually(lambda: len(stack.postgres.query(connections)) <= 1)
    with stack.postgres.hanging():
        time.sleep(1.5)  # each worker is now inside a batch
        for process in stack.processes:
            process.popen.terminate()
        assert [process.wait() for process in stack.processes] == [0, 0, 0, 0]
    assert all(process.logged("service stopped") for process in stack.processes)


def test_a_stalled_worker_fails_health_and_nothing_else(stack: Stack) -> None:
    api = stack.everything()
    stack.processes[2].stop()
    beat = "UPDATE worker_heartbeats SET beat_at = now() - %s::interval WHERE worker = 'forecast'"
    stack.postgres.query(beat, "9 min 50 s")
    assert httpx.get(f"{api.url}/api/health").status_code == 200
    stack.postgres.query(beat, "10 min 5 s")
    health = httpx.get(f"{api.url}/api/health")
    assert health.status_code == 503
    assert (health.json()["db"], health.json()["worker"]) == ("ok", "stale: forecast")
    assert httpx.get(f"{api.url}/api/readyz").status_code == 200
    assert httpx.get(f"{api.url}/api/outing").json()["status"] == "ok"


# --- workers ---------------------------------------------------------------------------------------------------------


def source(broken: bool = False) -> Callable[[Received], tuple[int, Any]]:
    """A public source with four lots and a district."""
    seen = {"observed_at": datetime.now(UTC).isoformat()}
    lots = [{"id": f"lot{number}", "name": f"Lot {number}", "capacity": 10, "free": 5, **seen} for number in range(4)]
    if broken:
        lots[1]["free"] = 11
        lots[2] = {"id": "half an item"}
    weather = {"id": "hills", "name": "Hills", "temperature_c": 20, "rain_mm": 0, "air_quality": 40, **seen}
    return lambda request: (200, lots if request.path == "/parking" else [weather])


def test_a_batch_with_bad_items_finishes_degraded(stack: Stack) -> None:
    with receiver(source(broken=True)) as upstream:
        ingest = stack.worker("ingest", UPSTREAM_URL=upstream.url)
    assert stack.postgres.query("SELECT lot_id FROM parking_observations ORDER BY 1") == [("lot0",), ("lot3",)]
    assert stack.postgres.query("SELECT count(*) FROM weather_observations") == [(1,)]
    finished = eventually(lambda: ingest.logged("job finished"))
    wanted = {"level": "WARN", "job_name": "ingest", "status": "degraded", "done": 3, "failed": 2}
    assert finished.items() >= wanted.items()
    assert all(request.headers["x-request-id"].startswith("ingest-") for request in upstream.requests)
    text = worker_metrics(stack, "ingest")
    assert metric(text, "job_runs_total", job_name="ingest", status="degraded") >= 1
    assert metric(text, "job_last_success_timestamp_seconds", job_name="ingest") > time.time() - 60


def test_a_source_that_is_down_is_retried_and_the_other_goes_on(stack: Stack) -> None:
    good = source()
    with receiver(lambda request: (502, {}) if request.path == "/parking" else good(request)) as upstream:
        ingest = stack.start("worker", "ingest", UPSTREAM_URL=upstream.url)
        assert eventually(lambda: ingest.logged("job finished"))["status"] == "degraded"
        retries = [line["message"] for line in ingest.lines() if "retry" in line["message"]]
        assert retries[:3] == [f"retry in {seconds} s: parking-source" for seconds in (1, 4, 16)]
        # The next batch makes the fifth failure in a row.
        assert eventually(lambda: ingest.logged("circuit open: parking-source"))["level"] == "WARN"
        for service, state in (("parking-source", 2), ("weather-source", 0)):
            assert metric(worker_metrics(stack, "ingest"), "circuit_breaker_state", service=service) == state


def test_the_request_id_travels_from_the_user_to_the_push_gateway(stack: Stack) -> None:
    with receiver() as gateway:
        api = stack.api()
        stack.worker("push", PUSH_GATEWAY_URL=gateway.url)
        put_subscription(api, request_id="trace-42")
        request = eventually(lambda: gateway.requests and gateway.requests[0])
        assert request.headers["x-request-id"] == "trace-42"
        assert request.headers["idempotency-key"].startswith("outbox-")
        assert json.loads(request.body)["subscription"]["endpoint"] == "https://push.example/ada"
        assert stack.postgres.query("SELECT request_id FROM audit_log") == [("trace-42",)]
        assert [line["request_id"] for line in api.lines() if line.get("status") == 201] == ["trace-42"]
        eventually(lambda: metric(worker_metrics(stack, "push"), "outbox_pending") == 0)
        time.sleep(1.2)
        assert len(gateway.requests) == 1, "delivered once"
    forged = httpx.get(f"{api.url}/api/livez", headers={"X-Request-ID": 'x" } {"level": "forged'})
    assert len(forged.headers["X-Request-ID"]) == 32


def test_a_refused_notification_is_given_up_and_the_rest_is_delivered(stack: Stack) -> None:
    def respond(request: Received) -> tuple[int, Any]:
        return (410 if "bad" in json.loads(request.body)["subscription"]["endpoint"] else 201, {})

    api = stack.api()
    for user in ("ada", "bad", "eve"):
        put_subscription(api, user)
    with receiver(respond) as gateway:
        stack.worker("push", PUSH_GATEWAY_URL=gateway.url)
    rows = stack.postgres.query(
        """SELECT user_id, delivered_at IS NOT NULL, failed_at IS NOT NULL, last_error
           FROM outbox JOIN push_subscriptions s ON s.id = subscription_id ORDER BY 1"""
    )
    refused = "push-gateway answered 410"
    assert rows == [("ada", True, False, None), ("bad", False, True, refused), ("eve", True, False, None)]


def test_forecasts_are_scored_and_users_notified_once(stack: Stack) -> None:
    api = stack.api()
    put_subscription(api)
    httpx.put(f"{api.url}/api/settings/ada", json={"min_free_spaces": 6})
    with receiver(source()) as upstream:
        stack.worker("ingest", UPSTREAM_URL=upstream.url).stop()
    stack.postgres.query(
        """INSERT INTO parking_observations SELECT 'lot0', now() - interval '20 min', 8;
           INSERT INTO parking_lots VALUES ('new', 'New', 10);
           INSERT INTO forecasts (lot_id, target_at, predicted_free) SELECT 'lot0', now() - interval '21 min', 3"""
    )
    forecast = stack.worker("forecast")
    finished = eventually(lambda: forecast.logged("job finished"))
    assert (finished["status"], finished["done"], finished["failed"]) == ("degraded", 4, 1), "one has no observation"
    assert stack.postgres.query("SELECT actual_free, error FROM backtests") == [(8, -5)]
    rows = stack.postgres.query("SELECT DISTINCT lot_id, predicted_free FROM forecasts WHERE target_at > now()")
    predicted = dict(rows)
    assert 0 <= predicted.pop("lot0") < 5, "it was emptying"
    assert predicted == {"lot1": 5, "lot2": 5, "lot3": 5}
    titles = stack.postgres.query(
        "SELECT payload->>'title' FROM outbox WHERE dedup_key <> 'welcome' ORDER BY dedup_key LIMIT 4"
    )
    assert [title.partition(": about ")[0] for (title,) in titles] == ["Lot 0", "Lot 1", "Lot 2", "Lot 3"]


# --- operators -------------------------------------------------------------------------------------------------------


def test_metrics_have_the_names_that_the_alerts_use(stack: Stack) -> None:
    api = stack.everything()
    for path in ("/api/settings/ada", "/nowhere/1"):
        assert httpx.get(f"{api.url}{path}").status_code == 404
    text = httpx.get(f"{api.url}/metrics").text
    labels = {"service": "api", "method": "GET", "route": "/api/settings/{user}", "status": "404"}
    assert metric(text, "http_requests_total", **labels) == 1
    assert metric(text, "http_request_duration_seconds_bucket", le="0.2", **labels) is not None
    assert metric(text, "http_requests_total", route="unmatched", status="404") == 1
    assert metric(text, "db_pool_max") == 8
    assert None not in {metric(text, f"db_pool_{name}") for name in ("size", "available", "waiting")}
    for name in WORKERS:
        own = worker_metrics(stack, name)
        assert metric(own, "job_stale_threshold_seconds", job_name=name) in (300, 600)
        assert metric(own, "job_duration_seconds_count", job_name=name) >= 1
        assert metric(own, "worker_heartbeat_timestamp_seconds", worker=name) > time.time() - 60


def test_the_last_success_survives_a_restart_of_the_worker(stack: Stack) -> None:
    stack.worker("forecast").stop()
    stack.postgres.query("UPDATE worker_heartbeats SET last_success_at = '2001-01-01Z'")
    stack.postgres.query("ALTER TABLE forecasts RENAME TO hidden")
    try:
        forecast = stack.start("worker", "forecast")
        assert eventually(lambda: forecast.logged("job failed"))["level"] == "ERROR"
        value = metric(worker_metrics(stack, "forecast"), "job_last_success_timestamp_seconds", job_name="forecast")
        assert value == datetime(2001, 1, 1, tzinfo=UTC).timestamp()
    finally:
        stack.postgres.query("ALTER TABLE hidden RENAME TO forecasts")


def test_sentry_gets_an_envelope_with_tags_and_no_secret(stack: Stack) -> None:
    with receiver() as sentry:
        api = stack.api(SENTRY_DSN=sentry.url.replace("http://", "http://0123456789abcdef@") + "/42")
        stack.postgres.query("ALTER TABLE app_events RENAME TO hidden")
        try:
            body = {"kind": "x", "payload": {"private": "thing"}}
            response = httpx.post(f"{api.url}/api/events", json=body, headers={"X-Request-ID": "r1"})
        finally:
            stack.postgres.query("ALTER TABLE hidden RENAME TO app_events")
        assert (response.status_code, response.json()) == (500, {"status": "error", "request_id": "r1"})
        assert api.stop() == 0, "stopping sends what is queued"
    assert {request.path for request in sentry.requests} == {"/api/42/envelope/"}
    [event] = sentry.sentry_events()
    assert event["tags"].items() >= {"service": "api", "env": "test", "version": "1.2.3", "request_id": "r1"}.items()
    assert event["exception"]["values"][-1]["type"] == "UndefinedTable"
    sent = b"".join(request.body for request in sentry.requests).decode()
    for secret in (*SECRETS, "private"):
        assert secret not in sent
    assert "0123456789abcdef" not in api.log.read_text()


def test_a_stop_lets_the_current_request_finish(stack: Stack) -> None:
    api = stack.api()
    httpx.put(f"{api.url}/api/settings/ada", json={})
    second = stack.start("api")
    assert second.wait() == 1
    assert any(line["level"] == "CRITICAL" and "could not listen" in line["message"] for line in second.lines())
    with psycopg.connect(**stack.postgres.arguments()) as blocker, ThreadPoolExecutor(1) as pool:
        blocker.execute("LOCK TABLE notification_settings")
        waiting = pool.submit(httpx.put, f"{api.url}/api/settings/ada", json={"min_free_spaces": 99}, timeout=30)
        time.sleep(0.5)
        api.popen.terminate()
        time.sleep(0.3)
        assert api.popen.poll() is None
        blocker.rollback()
        assert waiting.result().json()["min_free_spaces"] == 99
    assert api.wait() == 0
    assert api.logged("service stopped")


def test_logs_are_json_with_the_agreed_fields_and_no_secret(stack: Stack) -> None:
    api = stack.everything(LOG_LEVEL="DEBUG")
    wrong = stack.start("migrate", DATABASE_USER="nobody", LOG_LEVEL="DEBUG")
    assert wrong.wait() == 1
    missing = stack.start("api", DATABASE_HOST="", REDIS_HOST="", API_PORT="http")
    assert missing.wait() == 2
    [line] = missing.lines()
    assert line["level"] == "CRITICAL"
    assert all(name in line["message"] for name in ("DATABASE_HOST is not set", "REDIS_HOST is not set", "API_PORT"))
    running = [process for process in stack.processes if process not in (wrong, missing)]
    assert [process.stop() for process in running] == [0, 0, 0, 0]
    for process, service in zip(stack.processes, ("api", *WORKERS, "migrate", "api"), strict=True):
        for line in process.lines():
            assert list(line)[:5] == ["timestamp", "level", "service", "request_id", "message"]
            assert line["service"] == service
            assert line["level"] in ("DEBUG", "INFO", "WARN", "ERROR", "CRITICAL")
            assert datetime.fromisoformat(line["timestamp"]).tzinfo
        assert not [secret for secret in SECRETS if secret in process.log.read_text()]
        if process in running:
            assert process.logged("service started")["version"] == "1.2.3"
            assert process.logged("service stopped")
    assert any(line["message"] == "request" and line["request_id"] for line in api.lines())
