"""Fixtures and helpers of the checks. The checks run against any machine of an inventory, over one SSH connection.

`sh` runs commands on the machine as root. `public` and `operator` are the two sides from which it is reached: in the
lab a network namespace each, in production the controller itself, which is on the operator side.

Session fixtures fetch shared data once. A check that stops or changes something uses `disturb`, which works in the lab
only.

The first line of a check's docstring is its name in reports: a full sentence that a stranger understands.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
from testinfra.host import Host

from minipc.config import Settings
from minipc.config.schema import PostgresDatabase
from minipc.core.addresses import bracketed
from minipc.core.environment import LAB, Environment, named
from minipc.core.paths import state_dir
from minipc.core.polling import wait_until
from minipc.core.variables import ENVIRONMENT_VARIABLE, HOST_VARIABLE, SERVICE_VARIABLE
from minipc.remote import persistent_shell, psql, ssh
from minipc.remote.inventory import Target, the_target
from minipc.remote.sides import Side
from minipc.secrets import Secrets, load
from minipc.secrets.catalogue import postgres_password, redis_password
from tests.verify.service import InK3s, RunningService, UnderPodman

Shell = Callable[..., str]
CURL = ("curl", "--silent", "--show-error", "--include", "--noproxy", "*", "--header", "Expect:")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "disturbs: stops or changes something for a moment; runs in the lab only")
    config.addinivalue_line("markers", "late: waits for something slow; runs just before the next check that disturbs")
    config.addinivalue_line("markers", "outside: runs as a client on a side or in the VPN, not over SSH")


# Fixtures of checks that run as a client outside the machine.
NO_SERVICE = "none"
CLIENTS = {"public", "operator", "tunnel", "stranger"}
# Where the service does not run in K3s, one check of each file reports that for all of them.
IN_K3S = ("test_k3s", "test_k3s_agent", "test_argocd")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark the checks that use `disturb` or act as a client: `-m "not disturbs and not outside"`."""
    modules = [item.path.stem for item in items]
    if set(IN_K3S) & set(modules) and not _runs_in_k3s():
        numbered = [(item, name, number) for number, (item, name) in enumerate(zip(items, modules, strict=True))]
        spare = [item for item, name, number in numbered if name in IN_K3S and name in modules[:number]]
        config.hook.pytest_deselected(items=spare)
        items[:] = [item for item in items if item not in spare]
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "disturb" in fixtures:
            item.add_marker("disturbs")
        if CLIENTS & set(fixtures):
            item.add_marker("outside")
    yield  # pytest selects by marker
    _put_off_the_late(items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each check that uses the fixture `service` once for each declared service."""
    if "service" in metafunc.fixturenames:
        wanted = os.environ.get(SERVICE_VARIABLE)
        declared = the_target(_environment(), os.environ.get(HOST_VARIABLE)).settings.services.declared
        names = [each.name for each in declared if wanted in (None, each.name)]
        metafunc.parametrize("service", names or [NO_SERVICE], indirect=True, scope="session")


def _put_off_the_late(items: list[pytest.Item]) -> None:
    """Move each late check to just before the next one that disturbs, so that its wait costs no time."""
    for late in [item for item in items if item.get_closest_marker("late")]:
        following = items[items.index(late) + 1 :]
        calm = list(itertools.takewhile(lambda item: not item.get_closest_marker("disturbs"), following))
        items.remove(late)
        items.insert(len(items) - len(following) + len(calm), late)


def _runs_in_k3s() -> bool:
    return the_target(_environment(), os.environ.get(HOST_VARIABLE)).settings.services.runtime == "k3s"


def _environment() -> Environment:
    return named(os.environ.get(ENVIRONMENT_VARIABLE, LAB.name))


def not_exercised(why: str) -> NoReturn:
    """End the check as NOT EXERCISED: neither passed nor failed, and listed in every report."""
    pytest.skip(f"NOT EXERCISED: {why}")


eventually = wait_until


@dataclass(frozen=True)
class Answer:
    """An HTTP response. Without one `code` is 0 and `body` has the reason. Header names are in lower case."""

    code: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


def parse_answer(text: str) -> Answer:
    """Return the last response in the output of `curl --include`."""
    head, _, body = text.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.splitlines()
    if status.split()[1].startswith("1"):
        return parse_answer(body)
    fields = (line.split(":", 1) for line in lines)
    return Answer(int(status.split()[1]), {name.lower(): value.strip() for name, value in fields}, body)


@pytest.fixture(scope="session")
def environment() -> Environment:
    return _environment()


@pytest.fixture(scope="session")
def target(environment: Environment) -> Target:
    return the_target(environment, os.environ.get(HOST_VARIABLE))


@pytest.fixture(scope="session")
def settings(target: Target) -> Settings:
    return target.settings


@pytest.fixture(scope="session")
def public(target: Target) -> Side:
    return target.side("public")


@pytest.fixture(scope="session")
def operator(target: Target) -> Side:
    return target.side("operator")


@pytest.fixture(scope="session")
def tunnel(target: Target) -> Side:
    """Return the VPN side: the machine as a VPN client reaches it."""
    if target.role != "mini":
        not_exercised("the mini PC alone has a VPN")
    side = target.side("vpn")
    if side.connect:
        subprocess.run([*side.connect, "up"], check=True, timeout=60)
    if not side.reaches(22, within_s=10) and not side.connect:
        not_exercised("this controller has no tunnel to the machine: minipc vpn add NAME, then wg-quick up FILE")
    return side


@pytest.fixture(scope="session")
def sh(target: Target) -> Iterator[Shell]:
    """Return a function that runs a shell command on the machine; the check fails if the command fails."""
    backend = persistent_shell.ShellBackend(ssh.write_config([(target.alias, target.data)]), target.alias)
    machine = Host(backend)

    def run(command: str) -> str:
        done = machine.run(command)
        assert done.rc == 0, f"{command}\n{done.stderr.strip() or done.stdout.strip()}"
        return str(done.stdout).strip()

    yield run
    backend.shell.close()


@pytest.fixture(scope="session")
def script(target: Target) -> Shell:
    """Return a function that runs a shell script and returns its output, errors included.

    The machine reads the script from stdin, so that no secret is ever in a command line. The check decides from the
    output whether it succeeded.
    """
    config = ssh.write_config([(target.alias, target.data)])

    def run(text: str) -> str:
        # In one group, so that the whole script is read before its first command, whose stdin is another.
        done = ssh.run(config, target.alias, "sh -s", stdin=f"{{\n{text}\n}} </dev/null 2>&1\n")
        return done.stdout.decode().strip()

    return run


@pytest.fixture(scope="session")
def disturb(environment: Environment, sh: Shell) -> Shell:
    """Return `sh` for commands that stop or change something for a moment. NOT EXERCISED outside the lab."""
    if not environment.disposable:
        not_exercised("it would stop or change something on a machine in service; the lab exercises it")
    return sh


@pytest.fixture(scope="session")
def secrets(environment: Environment, settings: Settings) -> Secrets:
    """Return the passwords of PostgreSQL's roles and Redis's users. Reveal one only inside a `script`."""
    names = [f"postgres.password.{role.name}" for role in settings.postgres.roles]
    return load(environment.name, [*names, *(f"redis.password.{user.name}" for user in settings.redis.users)])


@pytest.fixture(scope="session")
def units(sh: Shell) -> Callable[[str], Mapping[str, str]]:
    """Return a function for the properties of a systemd unit, fetched once for each unit."""
    known: dict[str, Mapping[str, str]] = {}

    def properties(name: str) -> Mapping[str, str]:
        if name not in known:
            known[name] = dict(line.split("=", 1) for line in sh(f"systemctl show {name}").splitlines() if "=" in line)
        return known[name]

    return properties


@pytest.fixture(scope="session")
def exposure(sh: Shell) -> Callable[[str], float]:
    """Return a function for the score of `systemd-analyze security`: 0 is fully confined, 10 is unrestricted."""

    def measure(unit: str) -> float:
        verdict = sh(f"systemd-analyze security --no-pager {unit} 2>/dev/null | grep 'Overall exposure'")
        return float(verdict.split(": ")[1].split()[0])

    return measure


@pytest.fixture(scope="session")
def listeners(sh: Shell) -> Iterable[tuple[str, int, str]]:
    """Return address, port and program of every listening TCP socket."""
    found = []
    for line in sh("ss -Hltnp").splitlines():
        fields = line.split()
        address, _, port = fields[3].rpartition(":")
        program = fields[5].split('"')[1] if len(fields) > 5 else ""
        found.append((address.strip("[]"), int(port), program))
    return found


@pytest.fixture(scope="session")
def sql(sh: Shell, settings: Settings) -> Shell:
    """Run SQL over the local socket. The login depends on the database (see `psql`); a service's is only read."""

    def run(statement: str, database: str = "postgres") -> str:
        return sh(psql.command(settings.postgres, database, "-c", statement))

    return run


@pytest.fixture(scope="session")
def service_database(settings: Settings) -> PostgresDatabase:
    """Return the database of a service, with its roles. NOT EXERCISED where no service has one."""
    wanted = os.environ.get(SERVICE_VARIABLE)
    owners = {each.postgres.database: each.name for each in settings.services.declared if each.postgres}
    found = [each for each in settings.postgres.databases if wanted in (None, owners.get(each.name))]
    if not found:
        not_exercised("no service has a database")
    return found[0]


@pytest.fixture(scope="session")
def as_service(
    script: Shell, settings: Settings, secrets: Secrets, service_database: PostgresDatabase
) -> Callable[[str], str]:
    """Run SQL as the service does, with its own password: a check writes and removes with no more rights than it."""
    password = secrets[postgres_password(service_database.runtime)]
    where = f"-h {settings.host.service_address} -p {settings.postgres.port}"
    login = f"{where} -U {service_database.runtime} -d {service_database.name}"

    def run(statement: str) -> str:
        text = f"psql -XAtqw -v ON_ERROR_STOP=1 {login} -c {shlex.quote(statement)} || echo FAILED"
        said = script(f"export PGCONNECT_TIMEOUT=5 PGPASSWORD={shlex.quote(password.reveal())}\n{text}")
        assert not said.endswith("FAILED"), f"{statement}\n{said}"
        return said

    return run


@pytest.fixture(scope="session")
def redis(script: Shell, settings: Settings) -> Callable[..., list[str]]:
    """Return a function that sends commands to Redis and returns the answers; without a user it does not log in."""

    def run(commands: Iterable[str], user: str | None = None, password: str | None = None) -> list[str]:
        cli = f"redis-cli -h {settings.host.service_address} -p {settings.redis.port} --no-auth-warning"
        if user:
            cli = f"REDISCLI_AUTH={password} {cli} --user {user}"
        lines = "\n".join(commands)
        return script(f"{cli} <<'END'\n{lines}\nEND").splitlines()

    return run


@pytest.fixture(scope="session")
def k3s_is_here(settings: Settings, sh: Shell) -> None:
    """Skip as NOT EXERCISED where no cluster is configured, or K3s is not available."""
    if settings.services.runtime != "k3s":
        not_exercised("services run under podman, without K3s")
    if not sh("ls /usr/local/bin/k3s 2>/dev/null || true"):
        not_exercised("the artifact k3s is not available")


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, sh: Shell, settings: Settings) -> RunningService:
    """Return one of the services, as its runtime runs it. NOT EXERCISED where none is declared, or no K3s is there."""
    if request.param == NO_SERVICE:
        not_exercised("no service is declared: services/ has no service files")
    file = settings.services.named(request.param)
    if settings.services.runtime != "k3s":
        return UnderPodman(sh, file, settings.services.declared)
    if not sh("ls /usr/local/bin/k3s 2>/dev/null || true"):
        not_exercised("the artifact k3s is not available, so no service is deployed")
    return InK3s(sh, file)


@pytest.fixture(scope="session")
def cache_user(settings: Settings) -> str:
    """Return the name of a service that uses the shared cache. NOT EXERCISED where none does."""
    wanted = os.environ.get(SERVICE_VARIABLE)
    users = [each for each in settings.services.declared if each.redis and each.redis.kind == "cache"]
    names = [each.name for each in users if wanted in (None, each.name)]
    if not names:
        not_exercised("no service uses the shared cache")
    return names[0]


@pytest.fixture(scope="session")
def as_cache_user(redis: Callable[..., list[str]], secrets: Secrets, cache_user: str) -> Callable[..., list[str]]:
    """Return a function that sends commands to Redis as that service."""
    return lambda *commands: redis(commands, cache_user, secrets[redis_password(cache_user)].reveal())


@pytest.fixture(scope="session")
def direct(service: RunningService, sh: Shell) -> Callable[..., Answer]:
    """Return a function that sends a request to the service on the machine itself, without the ingress."""
    ingress = service.file.ingress
    if ingress is None:
        not_exercised(f"{service.file.name} has no ingress")

    def request(path: str, *options: str, timeout_s: float = 10) -> Answer:
        url = f"http://127.0.0.1:{ingress.node_port}{path}"
        argv = [*CURL, "--max-time", str(timeout_s), *options, url]
        text = sh(f'out=$({shlex.join(argv)} 2>&1) && printf %s "$out" || printf \'no answer: %s\' "$out"')
        return parse_answer(text) if text.startswith("HTTP/") else Answer(0, {}, text)

    return request


@pytest.fixture(scope="session")
def edge(service: RunningService, public: Side, settings: Settings, sh: Shell, target: Target) -> Edge:
    """Return the ingress of the service, as a client on the public side sees it."""
    if service.file.ingress is None or service.file.ingress.audience != "public":
        not_exercised(f"{service.file.name} has no public ingress")
    domain = service.file.ingress.domains[0]
    return Edge(public, domain, internal_ca(sh, target) if settings.edge.acme == "internal" else None)


class Edge:
    """Requests to the public name from the public side. The certificate is verified."""

    def __init__(self, side: Side, domain: str, ca: str | None) -> None:
        self.side = side
        self.domain = domain
        self.trust = ("--cacert", ca) if ca else ()

    def get(self, path: str, *options: str, scheme: str = "https", address: str | None = None) -> Answer:
        """Send one request; `address` defaults to the machine's IPv4 address."""
        argv = [*CURL, "--max-time", "15", "--path-as-is", *self.to(address or self.side.ipv4), *options]
        done = self.side.run(*argv, f"{scheme}://{self.domain}{path}")
        return parse_answer(done.stdout) if done.stdout else Answer(0, {}, done.stderr.strip())

    def to(self, address: str) -> list[str]:
        """Return curl's options that resolve the public name to an address and verify the certificate."""
        host = bracketed(address)
        return ["--resolve", f"{self.domain}:80:{host}", "--resolve", f"{self.domain}:443:{host}", *self.trust]


def internal_ca(sh: Shell, target: Target) -> str:
    """Fetch the certificate of the lab's own authority over SSH and return the path of the file."""
    path = state_dir("ssh") / f"internal-ca+{target.alias}.crt"
    path.write_text(sh("cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt") + "\n", encoding="utf-8")
    return str(path)
