"""Check that an image keeps what its service file promises: run it on this computer against a scratch database.

Everything runs with podman in one network without a way out: an empty PostgreSQL and Redis, the migration as owner
role, then each process as it will run: the file's user, a read-only root file system, no privileges.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minipc.config import Settings
from minipc.config.service import Program, Service
from minipc.core.errors import MinipcError
from minipc.core.process import call, clean_environment
from minipc.core.verdicts import Outcome
from minipc.images import prerequisites
from minipc.services import builds
from minipc.services.environment import (
    MIGRATE,
    SECRETS_FOLDER,
    needed_secrets,
    programs,
    secret_data,
    uses_password_files,
    variables,
)
from minipc.services.images import ServiceImage
from minipc.services.ports import redis_port

_WATCHED_S = 5.0
"""How long a process without a port must keep running to be a pass."""
# PostgreSQL and Redis as root would refuse to start or warn; both use the user postgres.
_SCRATCH = """\
FROM localhost/debian:13
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends postgresql-17 redis-server {packages} \\
    && rm -rf /var/lib/apt/lists/*
USER postgres
"""
_START = """\
set -e
bin=/usr/lib/postgresql/17/bin
$bin/initdb --auth=trust --username=postgres --no-sync -D /data/postgres > /dev/null
redis-server --port "$REDIS_PORT" --save '' --dir /data --user "$REDIS_USER" on "~*" "&*" +@all ">$REDIS_PASSWORD" \\
    > /dev/null &
exec $bin/postgres -D /data/postgres -p "$POSTGRES_PORT" -c listen_addresses='*' -c fsync=off -k /tmp
"""
# Runs in the network of the containers. Prints status and Location, or why there is no answer.
_ASK = """\
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
try:
    connection.request("GET", sys.argv[2], headers={"Host": sys.argv[3]})
    answer = connection.getresponse()
    print(json.dumps({"status": answer.status, "location": answer.headers.get("Location", "")}))
except ConnectionRefusedError:
    print(json.dumps({"refused": True}))
except (OSError, http.client.HTTPException) as error:
    print(json.dumps({"problem": f"{type(error).__name__}: {error}"}))
"""


@dataclass(frozen=True)
class Check:
    """One sentence that a stranger understands, and whether it is true."""

    name: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True)
class _Bench:
    """The scratch containers of one run.

    Attributes:
        podman: the command with its store.
        server: container with database and cache, whose network all others use.
        folder: temporary files of this run.
        values: what `secret_data` needs, random.
    """

    podman: tuple[str, ...]
    server: str
    folder: Path
    settings: Settings
    service: Service
    image: str
    values: Mapping[str, str]

    def do(self, *arguments: str, stdin: str = "", timeout: float = 120) -> str:
        return call(*self.podman, *arguments, stdin=stdin, timeout=timeout)

    def sql(self, statements: str, database: str = "postgres") -> None:
        port = str(self.settings.postgres.port)
        arguments = ["psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", "/tmp", "-p", port, "-U", "postgres", "-d", database]  # noqa: S108
        self.do("exec", "--interactive", self.server, *arguments, stdin=statements)


def check_image(settings: Settings, service: Service, image: ServiceImage) -> Iterator[Check]:
    """Run the image on this computer and yield each check as it ends. Needs root.

    Raises:
        MissingPrerequisiteError: this user is not root, or podman cannot be installed.
        MinipcError: the scratch database could not be started.
    """
    with _bench(settings, service, image) as bench:
        if service.migrate:
            yield (migrated := _migration(bench))
            if migrated.outcome == "failed":
                return
        front = service.front[0] if service.front else None
        for name in service.processes:
            yield from _front(bench, name) if name == front else [_worker(bench, name)]


def _migration(bench: _Bench) -> Check:
    name = f"The migration of {bench.service.name} succeeds on an empty database as the owner role"
    limit = bench.service.migrate.time_limit_s if bench.service.migrate else 0
    with _container(bench, MIGRATE) as container:
        code = bench.do("wait", container, timeout=limit + 30).strip()
        return Check(name, "passed") if code == "0" else Check(name, "failed", _last_lines(bench, container, code))


def _worker(bench: _Bench, part: str) -> Check:
    name = f"The process {part} keeps running as user {bench.service.user} on a read-only root file system"
    with _container(bench, part) as container:
        ends = time.monotonic() + _WATCHED_S
        while time.monotonic() < ends:
            if (code := _exit_code(bench, container)) is not None:
                return Check(name, "failed", _last_lines(bench, container, code))
            time.sleep(0.5)
    return Check(name, "passed")


def _front(bench: _Bench, part: str) -> Iterator[Check]:
    """Yield the checks of the process behind the ingress."""
    service, health = bench.service, bench.service.health
    port = service.processes[part].port
    if health is None or port is None:
        return
    name = f"The process {part} listens on port {port} as user {service.user} on a read-only root file system"
    with _container(bench, part) as container:
        ends = time.monotonic() + health.start_limit_s
        answer: dict[str, object] = {}
        while True:
            code = _exit_code(bench, container)
            if code is not None:
                yield Check(name, "failed", _last_lines(bench, container, code))
                return
            answer = _ask(bench, port, health.ready)
            if answer.get("status") == 200 or 300 <= int(str(answer.get("status", 0))) < 400 or time.monotonic() > ends:
                break
            time.sleep(0.5)
        if answer.get("refused"):
            said = _last_lines(bench, container, "")
            yield Check(name, "failed", f"nothing listens there {health.start_limit_s} s after its start. {said}")
            return
        yield Check(name, "passed")
        paths = {"live": health.live, "ready": health.ready, "before_writes": health.before_writes}
        for key, path in paths.items():
            if path:
                yield _judge(key, path, _ask(bench, port, path))


def _judge(key: str, path: str, answer: Mapping[str, object]) -> Check:
    name = f"The path {path} (health.{key}) answers 200"
    status = answer.get("status")
    if status == 200:
        return Check(name, "passed")
    if status in (301, 302, 303, 307, 308):
        return Check(name, "failed", f"it redirects ({status}) to {answer.get('location')}; give the path that answers")
    return Check(name, "failed", f"it answers {status}" if status else str(answer.get("problem", "no answer")))


def _ask(bench: _Bench, port: int, path: str) -> dict[str, object]:
    pid = bench.do("inspect", "--format", "{{.State.Pid}}", bench.server).strip()
    argv = ["nsenter", "--target", pid, "--net", sys.executable, "-I", "-c", _ASK, str(port), path]
    answer: dict[str, object] = json.loads(call(*argv, bench.service.domain or "localhost", timeout=30))
    return answer


def _exit_code(bench: _Bench, container: str) -> str | None:
    running, code = bench.do("inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", container).split()
    return code if running == "false" else None


def _last_lines(bench: _Bench, container: str, code: str) -> str:
    done = subprocess.run(
        [*bench.podman, "logs", "--tail", "8", container], capture_output=True, text=True, errors="replace", timeout=30
    )
    lines = (done.stdout + done.stderr).strip() or "no output"
    return f"it ended with exit code {code}: {lines}" if code else f"Its last output: {lines}"


@contextmanager
def _container(bench: _Bench, part: str) -> Iterator[str]:
    """Start a part of the service as it will run, and remove it in the end."""
    service, program = bench.service, programs(bench.service)[part]
    mounts = [("tmpfs", path) for path in service.writable]
    mounts += [
        ("tmpfs", volume.mount)
        for volume in service.volumes.values()
        if part == MIGRATE or volume.processes is None or part in volume.processes
    ]
    container = f"{bench.server}-{part}"
    bench.do(
        *("run", "--detach", "--name", container, "--network", f"container:{bench.server}"),
        *("--user", f"{service.user}:{service.user}", "--read-only", "--cap-drop", "all"),
        *("--security-opt", "no-new-privileges", *_LIMITS, "--env-file", str(_variables(bench, part))),
        *("--volume", f"{bench.folder / 'hosts'}:/etc/hosts:ro"),
        *(word for kind, path in mounts for word in ("--mount", f"type={kind},destination={path},tmpfs-mode=1777")),
        *(word for key in uses_password_files(service, part) for word in _password_file(bench, part, key)),
        *_entrypoint(program),
        bench.image,
        *(program.command or []),
    )
    try:
        yield container
    finally:
        bench.do("rm", "--force", "--time", "2", container)


_RIGHTS = ("SELECT, INSERT, UPDATE, DELETE ON TABLES", "USAGE, SELECT ON SEQUENCES", "USAGE ON SCHEMAS")
# This computer may allow less than podman asks for.
_LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", "--cgroup-parent", "minipc-check")


def _entrypoint(program: Program) -> list[str]:
    return ["--entrypoint", json.dumps(program.entrypoint)] if program.entrypoint else []


def _data(bench: _Bench, part: str) -> dict[str, str]:
    return secret_data(bench.service, bench.settings, bench.values, "migrate" if part == MIGRATE else "run")


def _variables(bench: _Bench, part: str) -> Path:
    data = _data(bench, part)
    found = variables(bench.service, bench.settings.environment, part)
    lines = [f"{each.name}={data[each.key] if each.key else each.text}\n" for each in found]
    path = bench.folder / f"{part}.env"
    path.write_text("".join(lines).replace("{service.version}", "check"), encoding="utf-8")
    return path


def _password_file(bench: _Bench, part: str, key: str) -> list[str]:
    path = bench.folder / f"{part}.{key}"
    path.write_text(_data(bench, part)[key], encoding="utf-8")
    path.chmod(0o644)
    return ["--volume", f"{path}:{SECRETS_FOLDER}/{key}:ro"]


@contextmanager
def _bench(settings: Settings, service: Service, image: ServiceImage) -> Iterator[_Bench]:
    """Start the scratch server and give what the checks need; remove everything in the end."""
    runtime = prerequisites.ensure_container_runtime()
    podman: tuple[str, ...] = (
        *("podman", "--root", str(builds.store() / "storage"), "--runroot", str(builds.store() / "run")),
        *("--cgroup-manager", "cgroupfs", "--runtime", runtime, "--log-level", "error"),
    )
    with tempfile.TemporaryDirectory(prefix="minipc-check-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # the password files are mounted from here
        (folder / "hosts").write_text("127.0.0.1 localhost postgres redis\n")
        server = _scratch_image(service, folder)
        call(*podman, "load", "--quiet", "--input", str(image.path), timeout=300)
        values = {key: secrets.token_hex(16) for key in needed_secrets(service)}
        name = f"minipc-check-{secrets.token_hex(4)}"
        bench = _Bench(podman, name, folder, settings, service, image.reference, values)
        try:
            _start(bench, server)
            yield bench
        finally:
            subprocess.run(
                [*podman, "rm", "--force", "--time", "0", name],
                capture_output=True,
                timeout=60,
                env=clean_environment(),
            )


def _scratch_image(service: Service, folder: Path) -> str:
    packages = sorted(
        {each.package for each in (service.postgres.extensions if service.postgres else []) if each.package}
    )
    reference = f"localhost/minipc-scratch:{'-'.join(['17', *packages])[:100]}"
    context = folder / "scratch"
    context.mkdir()
    (context / builds.CONTAINERFILE).write_text(_SCRATCH.format(packages=" ".join(packages)), encoding="utf-8")
    builds.build_folder(context, reference)
    return reference


def _start(bench: _Bench, image: str) -> None:
    """Start database and cache, and make the roles as a converge does."""
    service = bench.service
    variables_file = bench.folder / "server.env"
    variables_file.write_text(
        f"POSTGRES_PORT={bench.settings.postgres.port}\nREDIS_PORT={redis_port(bench.settings, service)}\n"
        f"REDIS_USER={service.name}\nREDIS_PASSWORD={bench.values.get('redis', 'none')}\n"
    )
    bench.do(
        *("run", "--detach", "--name", bench.server, "--network", "none", *_LIMITS),
        *("--mount", "type=tmpfs,destination=/data,tmpfs-mode=1777", "--env-file", str(variables_file)),
        *(image, "sh", "-c", _START),
    )
    ends = time.monotonic() + 60
    while True:
        try:
            bench.sql("SELECT 1;")
            break
        except MinipcError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.5)
    if service.postgres:
        owner, runtime, _ = service.postgres.roles
        database = service.postgres.database
        bench.sql(f'CREATE ROLE "{owner}" LOGIN; CREATE ROLE "{runtime}" LOGIN; CREATE DATABASE "{database}";')
        bench.sql(
            "".join(f'CREATE EXTENSION "{each.name}" CASCADE;' for each in service.postgres.extensions)
            + f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC; GRANT CONNECT ON DATABASE "{database}" TO "{runtime}";'
            f'GRANT CONNECT, CREATE, TEMPORARY ON DATABASE "{database}" TO "{owner}";'
            f"REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
            f'GRANT USAGE, CREATE ON SCHEMA public TO "{owner}"; GRANT USAGE ON SCHEMA public TO "{runtime}";'
            + "".join(f'ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" GRANT {each} TO "{runtime}";' for each in _RIGHTS),
            database,
        )
