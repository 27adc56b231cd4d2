"""The wired workload, each process as it runs for real, against a PostgreSQL and a Redis of its own.

Runs inside Debian 13 with the packages of workload/packages.txt, postgresql, redis-server and python3-pytest:

    python3 -m pytest --noconftest -c /dev/null --rootdir=. tests/lab/test_workload_app.py
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

from tests.workload_receiver import Received, receiver  # noqa: E402

WORKLOAD = Path(__file__).resolve().parents[2] / "workload"
PG_BIN = Path("/usr/lib/postgresql/17/bin")
PASSWORD = 'p4ss/word with $pecial "chars" ' + secrets.token_hex(8)
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


def eventually(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
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
            PG_BIN / "initdb", "-D", self.data, "-U", "workload", "--pwfile", password_file,
            "--auth=scram-sha-256", "--no-sync", "--no-instructions",
        )  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nfsync=off\n")
        self.start()
        with psycopg.connect(**self.arguments("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE workload")

    def arguments(self, database: str = "workload") -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": self.port, "user": "workload", "password": PASSWORD, "dbname": database}

    def _as_postgres(self, *command: object) -> None:
        subprocess.run(
            ["runuser", "-u", "postgres", "--", *map(str, command)],
            check=True, timeout=60, stdout=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip

    def start(self) -> None:
        self._as_postgres(PG_BIN / "pg_ctl", "-D", self.data, "-w", "-l", "/dev/null", "start")

    def stop(self) -> None:
        self._as_postgres(PG_BIN / "pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def signal(self, number: int) -> None:
        """Signals the server and all its children: SIGSTOP makes it hang with its sockets open."""
        main = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(main)], capture_output=True, text=True, check=True)
        for pid in [main, *map(int, children.stdout.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def query(self, sql: str, *values: object) -> list[Any]:
        with psycopg.connect(**self.arguments(), autocommit=True) as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []


class Redis:
    """A throwaway Redis with one ACL user, restricted like the real one."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.acl = directory / "users.acl"
        self.acl.write_text(
            "user default off\nuser workload on >cache-password ~workload:* +@all -@dangerous -@admin\n"
        )
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
    """One process of the workload, its log in a file."""

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

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout)


class Stack:
    """PostgreSQL, Redis, and processes of the workload against them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = Postgres(directory)
        self.redis = Redis(directory)
        self.processes: list[Process] = []
        self.environment: dict[str, str] = {}
        self.reset()
        assert self.start("migrate").popen.wait(30) == 0

    def reset(self) -> None:
        """New ports and default settings."""
        ports = {f"METRICS_PORT_{name}": str(free_port()) for name in ("INGEST", "FORECAST", "PUSH")}
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(WORKLOAD),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.postgres.port),
            "DATABASE_NAME": "workload",
            "DATABASE_USER": "workload",
            "DATABASE_PASSWORD": PASSWORD,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis.port),
            "REDIS_USERNAME": "workload",
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

    def worker(self, name: str, **environment: str) -> Process:
        """A worker whose first batch is through."""
        process = self.start("worker", name, **environment)
        eventually(lambda: self.postgres.query(
            "SELECT 1 FROM worker_heartbeats WHERE worker = %s AND last_status IS NOT NULL", name))  # fmt: skip
        return process

    def clear(self) -> None:
        for process in self.processes:
            process.popen.kill()
            process.popen.wait()
        self.processes.clear()
        tables = set().union(*TABLES_BY_CLASS.values()) - {"schema_version"}
        self.postgres.query(f"TRUNCATE {', '.join(tables)}")
        command = "AUTH workload cache-password\r\nDEL workload:parking workload:outing\r\n"
        with socket.create_connection(("127.0.0.1", self.redis.port)) as connection:
            connection.sendall(command.encode())
            connection.recv(1024)


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # Not under pytest's own directory: that is 0700, and PostgreSQL runs as another user.
    directory = Path("/var/tmp") / f"workload-{secrets.token_hex(4)}"
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


# --- the schema ------------------------------------------------------------------------------------------------------


def test_every_table_says_its_data_class(stack: Stack) -> None:
    rows = stack.postgres.query(
        """SELECT relname, obj_description(oid) FROM pg_class
           WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"""
    )
    found: dict[str, set[str]] = {}
    for table, comment in rows:
        found.setdefault((comment or "none").removeprefix("data class: "), set()).add(table)
    assert found == TABLES_BY_CLASS


def test_migrating_again_and_at_once_changes_nothing(stack: Stack) -> None:
    both = [stack.start("migrate"), stack.start("migrate")]
    assert [process.popen.wait(30) for process in both] == [0, 0]
    assert stack.postgres.query("SELECT version_num FROM schema_version") == [("0001",)]
    assert both[0].logged("service started")
    assert both[0].logged("service stopped")


def test_migrating_an_empty_database_twice_at_once(stack: Stack) -> None:
    with psycopg.connect(**stack.postgres.arguments("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    try:
        both = [stack.start("migrate", DATABASE_NAME="empty") for _ in range(2)]
        assert [process.popen.wait(30) for process in both] == [0, 0]
    finally:
        with psycopg.connect(**stack.postgres.arguments("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE empty WITH (FORCE)")


def test_a_schema_newer_than_the_code_is_left_alone(stack: Stack) -> None:
    """After a rollback the version before runs on the schema of the one after it."""
    with psycopg.connect(**stack.postgres.arguments("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE newer")
    try:
        assert stack.start("migrate", DATABASE_NAME="newer").popen.wait(30) == 0
        with psycopg.connect(**stack.postgres.arguments("newer"), autocommit=True) as connection:
            connection.execute("UPDATE schema_version SET version_num = '9999'")
        again = stack.start("migrate", DATABASE_NAME="newer")
        assert again.popen.wait(30) == 0
        assert again.logged("schema is newer than this code")["schema"] == "9999"
        with psycopg.connect(**stack.postgres.arguments("newer")) as connection:
            assert connection.execute("SELECT version_num FROM schema_version").fetchall() == [("9999",)]
    finally:
        with psycopg.connect(**stack.postgres.arguments("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE newer WITH (FORCE)")


def test_migrating_can_wait_for_the_data(stack: Stack) -> None:
    both = [
        stack.start("migrate", "--wait", "1", DATABASE_PORT="1"),
        stack.start("migrate", "--wait", "1", REDIS_PORT="1"),
    ]
    for process in both:
        assert process.popen.wait(30) == 1
        assert process.logged("waiting for data")
    assert stack.start("migrate", "--wait", "1").popen.wait(30) == 0


def test_a_failed_migration_says_so(stack: Stack) -> None:
    process = stack.start("migrate", DATABASE_PORT="1")
    assert process.popen.wait(30) == 1
    failure = process.logged("service failed")
    assert failure
    assert failure["level"] == "CRITICAL"
    assert "port 1" in failure["exception"]


def test_the_committed_shape_of_the_api_is_the_one_it_has() -> None:
    """After a change: python3 -m minipc_workload openapi > gitops/ci/openapi.json"""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(WORKLOAD)}
    command = [sys.executable, "-B", "-m", "minipc_workload", "openapi"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == json.loads((WORKLOAD.parent / "gitops/ci/openapi.json").read_text())


# --- the whole -------------------------------------------------------------------------------------------------------


def test_smoke_passes_once_everything_runs_and_fails_without_a_worker(stack: Stack) -> None:
    api = stack.api()
    stack.worker("ingest")
    stack.worker("forecast")
    without_push = stack.start("smoke", "--url", api.url)
    assert without_push.popen.wait(30) == 1
    verdict = json.loads(without_push.log.read_text())
    assert [check["name"] for check in verdict["checks"] if not check["ok"]] == ["health"]
    assert "stale: push" in without_push.log.read_text()

    stack.worker("push")
    smoke = stack.start("smoke", "--url", api.url, "--wait", "10")
    assert smoke.popen.wait(30) == 0, smoke.log.read_text()
    verdict = json.loads(smoke.log.read_text())
    assert verdict["verdict"] == "pass"
    assert len(verdict["checks"]) == 6
    assert stack.postgres.query("SELECT count(*) FROM audit_log WHERE user_id = 'smoke'")[0][0] >= 4
    # The welcome of the smoke user's subscription went out.
    eventually(lambda: stack.postgres.query("SELECT 1 FROM outbox WHERE delivered_at IS NOT NULL"))


def test_both_screens_say_how_old_they_are(stack: Stack) -> None:
    api = stack.api()
    assert httpx.get(f"{api.url}/api/parking").status_code == 503, "nothing was collected yet"
    stack.worker("ingest")
    without_forecast = httpx.get(f"{api.url}/api/parking").json()
    assert without_forecast["status"] == "degraded"
    stack.worker("forecast")
    time.sleep(1.1)
    for path, count in (("parking", 6), ("outing", 4)):
        body = httpx.get(f"{api.url}/api/{path}").json()
        assert body["status"] == "ok"
        assert len(body["items"]) == count
        assert body["freshness"]["class"] == "fresh"
        observed_at = datetime.fromisoformat(body["observed_at"])
        assert abs((datetime.now(UTC) - observed_at).total_seconds() - body["freshness"]["age_s"]) < 3
        assert datetime.fromisoformat(body["generated_at"]) <= datetime.now(UTC)


def test_what_users_write_is_read_back(stack: Stack) -> None:
    api = stack.api()
    wish = {"parking_alerts": True, "outing_alerts": False, "min_free_spaces": 7}
    assert httpx.put(f"{api.url}/api/settings/ada", json=wish).status_code == 200
    assert httpx.get(f"{api.url}/api/settings/ada").json().items() >= wish.items()
    assert httpx.get(f"{api.url}/api/settings/nobody").status_code == 404

    first, again = put_subscription(api), put_subscription(api)
    assert first["id"] == again["id"]
    assert httpx.get(f"{api.url}/api/push-subscriptions/ada").json() == [first]
    assert "key-a" not in httpx.get(f"{api.url}/api/push-subscriptions/ada").text

    event = httpx.post(f"{api.url}/api/events", json={"kind": "opened", "payload": {"screen": "parking"}}).json()
    assert httpx.get(f"{api.url}/api/events/{event['id']}").json()["payload"] == {"screen": "parking"}
    assert [row[0] for row in stack.postgres.query("SELECT action FROM audit_log ORDER BY id")] == [
        "settings put", "subscription put", "subscription put",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/api/settings/ada", {"min_free_spaces": -1}),
        ("PUT", "/api/settings/ada", {"unknown": 1}),
        ("PUT", "/api/settings/-rf", {}),
        ("POST", "/api/push-subscriptions", {"user": "a", "endpoint": "http://plain", "p256dh": "x", "auth": "x"}),
        ("POST", "/api/events", {"kind": "x", "payload": {"text": "y" * 20_000}}),
        ("POST", "/api/events", {"kind": "x", "payload": {"text": "nul \0"}}),
        ("POST", "/api/events", {"kind": "x", "payload": {"text": "half a pair \ud800"}}),
        ("POST", "/api/events", {"kind": "x", "payload": {"number": float("nan")}}),
        ("POST", "/api/events", {"kind": "x", "payload": json.loads('{"a":' * 40 + "1" + "}" * 40)}),
        ("POST", "/api/events", "[" * 100_000),
        ("POST", "/api/push-subscriptions", {"user": "a", "endpoint": "https://x/\0", "p256dh": "x", "auth": "x"}),
        ("GET", "/api/events/0", None),
        ("GET", "/api/events/9999999999999999999999", None),
    ],
)
def test_bad_input_is_refused(stack: Stack, method: str, path: str, body: Any) -> None:
    api = stack.api()
    response = httpx.request(method, f"{api.url}{path}", content=body if isinstance(body, str) else json.dumps(body))
    assert response.status_code in (400, 422), response.text
    assert httpx.get(f"{api.url}/api/readyz").status_code == 200


# --- things that go down ---------------------------------------------------------------------------------------------


def test_the_cache_is_used_and_not_needed(stack: Stack) -> None:
    api = stack.api(CACHE_TTL_S="60")
    stack.worker("ingest")
    for _ in range(3):
        assert httpx.get(f"{api.url}/api/parking").status_code == 200
    text = httpx.get(f"{api.url}/metrics").text
    assert (
        metric(text, "cache_misses_total", screen="parking"),
        metric(text, "cache_hits_total", screen="parking"),
    ) == (1, 2)

    stack.redis.stop()
    try:
        for _ in range(6):
            assert httpx.get(f"{api.url}/api/outing").json()["status"] == "ok"
        assert httpx.get(f"{api.url}/api/readyz").status_code == 200
        opened = api.logged("circuit open: redis")
        assert opened
        assert opened["level"] == "WARN"
        assert metric(httpx.get(f"{api.url}/metrics").text, "circuit_breaker_state", service="redis") == 2
    finally:
        stack.redis.start()
    eventually(lambda: httpx.get(f"{api.url}/api/outing") and api.logged("circuit closed: redis"))


def test_database_down_and_back(stack: Stack) -> None:
    api = stack.api()
    for name in ("ingest", "forecast", "push"):
        stack.worker(name)
    eventually(lambda: httpx.get(f"{api.url}/api/health").status_code == 200)
    eventually(lambda: httpx.get(f"{api.url}/api/parking").json()["status"] == "ok")

    stack.postgres.stop()
    try:
        health = httpx.get(f"{api.url}/api/health")
        assert health.status_code == 503
        assert health.json() | {"uptime_s": 0} == {"status": "fail", "db": "down", "worker": "unknown", "uptime_s": 0}
        assert httpx.get(f"{api.url}/api/readyz").status_code == 503
        assert httpx.get(f"{api.url}/api/livez").status_code == 200
        time.sleep(1.1)  # the cached answer is no longer current
        parking = httpx.get(f"{api.url}/api/parking", timeout=5)
        assert parking.status_code == 200
        assert parking.json()["status"] in ("stale", "degraded")
        assert len(parking.json()["items"]) == 6
        write = httpx.put(f"{api.url}/api/settings/ada", json={}, timeout=5)
        assert write.status_code == 503
        assert "Retry-After" in write.headers
        for _ in range(4):
            httpx.get(f"{api.url}/api/parking", timeout=5)
        opened = api.logged("circuit open: postgres")
        assert opened
        assert opened["level"] == "WARN"
        began = time.monotonic()
        assert httpx.get(f"{api.url}/api/parking").status_code == 200
        assert time.monotonic() - began < 0.2, "an open breaker answers at once"
    finally:
        stack.postgres.start()
    eventually(lambda: httpx.get(f"{api.url}/api/health").status_code == 200)
    eventually(lambda: httpx.get(f"{api.url}/api/parking").json()["status"] == "ok")
    assert httpx.put(f"{api.url}/api/settings/ada", json={}).status_code == 200
    closed = api.logged("circuit closed: postgres")
    assert closed
    assert closed["level"] == "INFO"


def health_answers_within(text: str) -> Callable[[str], float | None]:
    """How many answers of /api/health with 503 took at most so many seconds."""
    return lambda limit: metric(
        text, "http_request_duration_seconds_bucket", route="/api/health", status="503", le=limit
    )


def test_health_is_quick_while_the_database_hangs(stack: Stack) -> None:
    api = stack.api(HEALTH_BUDGET_MS="100")
    stack.worker("ingest")
    eventually(lambda: httpx.get(f"{api.url}/api/parking").status_code == 200)
    before = len(stack.postgres.query("SELECT 1 FROM pg_stat_activity WHERE application_name = 'workload-probe'"))
    stack.postgres.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: httpx.get(f"{api.url}/api/health", timeout=10).status_code, range(40)))
        assert answers == [503] * 40
        # The server's own figures: the clients share its processors, and so may other machines. Waiting for the
        # database would take every single answer seconds.
        within = health_answers_within(httpx.get(f"{api.url}/metrics").text)
        assert within("+Inf") == within("1.0") == 40
        assert within("0.2") >= 36
        screen = httpx.get(f"{api.url}/api/parking", timeout=5)
        assert screen.status_code == 200
        assert screen.json()["items"]
        assert httpx.get(f"{api.url}/api/livez").status_code == 200
    finally:
        stack.postgres.signal(signal.SIGCONT)
    eventually(lambda: httpx.get(f"{api.url}/api/readyz").status_code == 200)
    eventually(lambda: httpx.put(f"{api.url}/api/settings/ada", json={}).status_code == 200)
    eventually(lambda: len(stack.postgres.query(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'workload-probe'")) <= max(1, before))  # fmt: skip


def test_all_processes_stop_while_the_database_hangs(stack: Stack) -> None:
    processes = [stack.api(), *(stack.worker(name) for name in ("ingest", "forecast", "push"))]
    stack.postgres.signal(signal.SIGSTOP)
    try:
        time.sleep(1.5)  # each worker is now inside a batch
        for process in processes:
            process.popen.send_signal(signal.SIGTERM)
        assert [process.popen.wait(20) for process in processes] == [0, 0, 0, 0]
    finally:
        stack.postgres.signal(signal.SIGCONT)
    assert all(process.logged("service stopped") for process in processes)


def test_a_stalled_worker_fails_health_and_nothing_else(stack: Stack) -> None:
    api = stack.api(HEARTBEAT_MAX_AGE_S="600")
    for name in ("ingest", "forecast", "push"):
        stack.worker(name)
    eventually(lambda: httpx.get(f"{api.url}/api/health").status_code == 200)
    stack.processes[2].stop()
    stack.postgres.query(
        "UPDATE worker_heartbeats SET beat_at = now() - interval '9 min 50 s' WHERE worker = 'forecast'"
    )
    assert httpx.get(f"{api.url}/api/health").status_code == 200
    stack.postgres.query(
        "UPDATE worker_heartbeats SET beat_at = now() - interval '10 min 5 s' WHERE worker = 'forecast'"
    )
    health = httpx.get(f"{api.url}/api/health")
    assert health.status_code == 503
    assert (health.json()["db"], health.json()["worker"]) == ("ok", "stale: forecast")
    assert httpx.get(f"{api.url}/api/readyz").status_code == 200
    assert httpx.get(f"{api.url}/api/outing").json()["status"] == "ok"
    stack.start("worker", "forecast")
    eventually(lambda: httpx.get(f"{api.url}/api/health").status_code == 200)


def test_starts_while_the_database_is_down(stack: Stack) -> None:
    stack.postgres.stop()
    try:
        api = stack.api()
        worker = stack.start("worker", "ingest")
        assert httpx.get(f"{api.url}/api/readyz").status_code == 503
        eventually(lambda: worker.logged("heartbeat failed"), 30)
    finally:
        stack.postgres.start()
    eventually(lambda: httpx.get(f"{api.url}/api/readyz").status_code == 200)
    eventually(lambda: stack.postgres.query("SELECT 1 FROM worker_heartbeats WHERE last_status = 'ok'"), 30)


# --- workers ---------------------------------------------------------------------------------------------------------


def source(observed_at: str, broken: int = 0) -> Callable[[Received], tuple[int, Any]]:
    lots = [
        {"id": f"lot{number}", "name": f"Lot {number}", "capacity": 10, "free": 5, "observed_at": observed_at}
        for number in range(4)
    ]
    if broken:
        lots[1]["free"] = 11
        lots[2] = {"id": "half an item"}
    districts = [
        {
            "id": "hills",
            "name": "Hills",
            "temperature_c": 20,
            "rain_mm": 0,
            "air_quality": 40,
            "observed_at": observed_at,
        }
    ]
    return lambda request: (200, lots if request.path == "/parking" else districts)


def test_a_batch_with_bad_items_finishes_degraded(stack: Stack) -> None:
    with receiver(source(datetime.now(UTC).isoformat(), broken=2)) as upstream:
        ingest = stack.worker("ingest", UPSTREAM_URL=upstream.url)
        assert stack.postgres.query("SELECT lot_id FROM parking_observations ORDER BY 1") == [("lot0",), ("lot3",)]
        assert stack.postgres.query("SELECT count(*) FROM weather_observations") == [(1,)]
        status, success = stack.postgres.query("SELECT last_status, last_success_at FROM worker_heartbeats")[0]
        assert status == "degraded"
        assert success is not None
        finished = eventually(lambda: ingest.logged("job finished"))
        assert (finished["level"], finished["status"], finished["done"], finished["failed"]) == (
            "WARN",
            "degraded",
            3,
            2,
        )
        assert all(request.headers["x-request-id"].startswith("ingest-") for request in upstream.requests)
        assert metric(worker_metrics(stack, "ingest"), "job_runs_total", job_name="ingest", status="degraded") >= 1


def test_a_source_that_is_down_is_retried_and_the_other_goes_on(stack: Stack) -> None:
    good = source(datetime.now(UTC).isoformat())
    with receiver(lambda request: (502, {}) if request.path == "/parking" else good(request)) as upstream:
        ingest = stack.start("worker", "ingest", UPSTREAM_URL=upstream.url)
        finished = eventually(lambda: ingest.logged("job finished"), 40)
        assert finished["status"] == "degraded"
        assert [line["message"] for line in ingest.lines() if "retry" in line["message"]][:3] == [
            f"retry in {seconds} s: parking-source" for seconds in (1, 4, 16)
        ]
        # The next batch makes the fifth failure in a row.
        opened = eventually(lambda: ingest.logged("circuit open: parking-source"))
        assert opened["level"] == "WARN"
        assert metric(worker_metrics(stack, "ingest"), "circuit_breaker_state", service="parking-source") == 2
        assert metric(worker_metrics(stack, "ingest"), "circuit_breaker_state", service="weather-source") == 0


def test_the_request_id_travels_from_the_user_to_the_push_gateway(stack: Stack) -> None:
    with receiver() as gateway:
        api = stack.api()
        push = stack.worker("push", PUSH_GATEWAY_URL=gateway.url)
        response = httpx.get(f"{api.url}/api/livez", headers={"X-Request-ID": "abc-1"})
        assert response.headers["X-Request-ID"] == "abc-1"
        forged = httpx.get(f"{api.url}/api/livez", headers={"X-Request-ID": 'x" } {"level": "forged'})
        assert len(forged.headers["X-Request-ID"]) == 32

        put_subscription(api, request_id="trace-42")
        request = eventually(lambda: gateway.requests and gateway.requests[0])
        assert request.headers["x-request-id"] == "trace-42"
        assert request.headers["idempotency-key"].startswith("outbox-")
        assert json.loads(request.body)["subscription"]["endpoint"] == "https://push.example/ada"
        assert stack.postgres.query("SELECT request_id FROM audit_log") == [("trace-42",)]
        assert (
            next(line for line in api.lines() if line["message"] == "request" and line["status"] == 201)["request_id"]
            == "trace-42"
        )
        eventually(lambda: metric(worker_metrics(stack, "push"), "outbox_pending") == 0)
        time.sleep(1.2)
        assert len(gateway.requests) == 1, "delivered once"
        assert push.stop() == 0


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
    assert rows == [
        ("ada", True, False, None),
        ("bad", False, True, "push-gateway answered 410"),
        ("eve", True, False, None),
    ]
    assert stack.postgres.query("SELECT last_status FROM worker_heartbeats") == [("degraded",)]


def test_forecasts_are_scored_and_users_told(stack: Stack) -> None:
    api = stack.api()
    put_subscription(api)
    httpx.put(f"{api.url}/api/settings/ada", json={"min_free_spaces": 6})
    now = datetime.now(UTC)
    with receiver(source(now.isoformat())) as upstream:
        stack.worker("ingest", UPSTREAM_URL=upstream.url)
    stack.postgres.query(
        """INSERT INTO parking_observations SELECT 'lot0', now() - interval '20 min', 8;
           INSERT INTO forecasts (lot_id, target_at, predicted_free) SELECT 'lot0', now() - interval '21 min', 3"""
    )
    stack.worker("forecast")
    assert stack.postgres.query("SELECT actual_free, error FROM backtests") == [(8, -5)]
    predicted = dict(stack.postgres.query("SELECT lot_id, predicted_free FROM forecasts WHERE target_at > now()"))
    assert predicted.pop("lot0") < 5, "it was emptying"
    assert predicted == {"lot1": 5, "lot2": 5, "lot3": 5}
    titles = [
        row[0] for row in stack.postgres.query("SELECT payload->>'title' FROM outbox WHERE dedup_key <> 'welcome'")
    ]
    assert len(titles) == 4
    assert titles[0].startswith("Lot 0: about ")


def successful(text: str, job_name: str) -> str | None:
    """The metrics again, once they tell of a success within the last minute."""
    last = metric(text, "job_last_success_timestamp_seconds", job_name=job_name)
    return text if last and last > time.time() - 60 else None


# --- what operators rely on ------------------------------------------------------------------------------------------


def test_metrics_have_the_names_the_alerts_use(stack: Stack) -> None:
    api = stack.api()
    httpx.get(f"{api.url}/api/settings/ada")
    httpx.get(f"{api.url}/nowhere/1")
    text = httpx.get(f"{api.url}/metrics").text
    labels = {"service": "api", "method": "GET", "route": "/api/settings/{user}", "status": "404"}
    assert metric(text, "http_requests_total", **labels) == 1
    assert metric(text, "http_request_duration_seconds_bucket", le="0.2", **labels) is not None
    assert metric(text, "http_requests_total", route="unmatched", status="404") == 1
    assert metric(text, "db_pool_max") == 8
    assert {metric(text, f"db_pool_{name}") is None for name in ("size", "available", "waiting")} == {False}
    for name in ("ingest", "forecast", "push"):
        stack.worker(name)
        own = eventually(lambda name=name: successful(worker_metrics(stack, name), name))
        assert metric(own, "job_stale_threshold_seconds", job_name=name) in (300, 600)
        assert metric(own, "job_duration_seconds_count", job_name=name) >= 1
        assert metric(own, "worker_heartbeat_timestamp_seconds", worker=name) > time.time() - 60
    assert metric(worker_metrics(stack, "push"), "outbox_pending") == 0


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
        dsn = sentry.url.replace("http://", "http://0123456789abcdef@") + "/42"
        api = stack.api(SENTRY_DSN=dsn)
        stack.postgres.query("ALTER TABLE app_events RENAME TO hidden")
        try:
            response = httpx.post(
                f"{api.url}/api/events",
                json={"kind": "x", "payload": {"private": "thing"}},
                headers={"X-Request-ID": "r1"},
            )
        finally:
            stack.postgres.query("ALTER TABLE hidden RENAME TO app_events")
        assert response.status_code == 500
        assert response.json() == {"status": "error", "request_id": "r1"}
        assert api.stop() == 0, "stopping sends what is queued"
    assert {request.path for request in sentry.requests} == {"/api/42/envelope/"}
    [event] = sentry.sentry_events()
    assert event["tags"].items() >= {"service": "api", "env": "test", "version": "1.2.3", "request_id": "r1"}.items()
    assert (event["environment"], event["release"]) == ("test", "1.2.3")
    assert event["exception"]["values"][-1]["type"] == "UndefinedTable"
    sent = b"".join(request.body for request in sentry.requests).decode()
    assert PASSWORD not in sent
    assert json.dumps(PASSWORD)[1:-1] not in sent
    assert "cache-password" not in sent
    assert "private" not in sent
    assert "0123456789abcdef" not in api.log.read_text()


def test_sigterm_lets_the_request_under_way_finish(stack: Stack) -> None:
    api = stack.api()
    httpx.put(f"{api.url}/api/settings/ada", json={})
    with psycopg.connect(**stack.postgres.arguments()) as blocker, ThreadPoolExecutor(1) as pool:
        blocker.execute("LOCK TABLE notification_settings")
        waiting = pool.submit(httpx.put, f"{api.url}/api/settings/ada", json={"min_free_spaces": 99}, timeout=10)
        time.sleep(0.5)
        api.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert api.popen.poll() is None
        blocker.rollback()
        assert waiting.result().json()["min_free_spaces"] == 99
    assert api.popen.wait(10) == 0
    assert api.logged("service stopped")


def test_a_port_in_use_is_a_failure_with_a_reason(stack: Stack) -> None:
    stack.api()
    second = stack.start("api")
    assert second.popen.wait(20) == 1
    assert any(line["level"] == "CRITICAL" and "could not listen" in line["message"] for line in second.lines())


def test_missing_settings_are_all_named(stack: Stack) -> None:
    process = stack.start("api", DATABASE_HOST="", REDIS_HOST="", API_PORT="http")
    assert process.popen.wait(20) == 2
    [line] = process.lines()
    assert line["level"] == "CRITICAL"
    for name in ("DATABASE_HOST", "REDIS_HOST", "API_PORT"):
        assert name in line["message"]


def test_logs_are_json_with_the_agreed_fields_and_hold_no_secret(stack: Stack) -> None:
    api = stack.api(LOG_LEVEL="DEBUG")
    workers = [stack.worker(name, LOG_LEVEL="DEBUG") for name in ("ingest", "forecast", "push")]
    httpx.get(f"{api.url}/api/parking")
    wrong = stack.start("migrate", DATABASE_USER="nobody", LOG_LEVEL="DEBUG")
    assert wrong.popen.wait(30) == 1
    assert [process.stop() for process in (api, *workers)] == [0, 0, 0, 0]
    for process, service in zip((api, *workers, wrong), ("api", "ingest", "forecast", "push", "migrate"), strict=True):
        for line in process.lines():
            assert list(line)[:5] == ["timestamp", "level", "service", "request_id", "message"]
            assert line["service"] == service
            assert line["level"] in ("DEBUG", "INFO", "WARN", "ERROR", "CRITICAL")
        text = process.log.read_text()
        for secret in (PASSWORD, json.dumps(PASSWORD)[1:-1], "cache-password"):
            assert secret not in text
        if process is not wrong:
            assert process.logged("service started")
            assert process.logged("service stopped")
