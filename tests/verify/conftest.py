"""What the checks share. They run against any machine of an inventory, over one SSH connection.

The machine itself is reached as root with `sh`. `public` and `operator` are the two sides it is reached from: in the
lab a network namespace each, in production the controller itself (which stands on the operator side).

What a session needs is fetched once, in session fixtures. A check that stops or changes something goes through
`disturb`, which exists in the lab only.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
from testinfra.host import Host

from minipc import remote_shell, ssh
from minipc.addresses import bracketed
from minipc.config import Settings
from minipc.inventory import Target, the_target
from minipc.paths import state_dir
from minipc.secrets import Secrets, load
from minipc.variables import ENVIRONMENT_VARIABLE, HOST_VARIABLE
from tests.verify.service import InK3s, Service, StandIn

Shell = Callable[..., str]
CURL = ("curl", "--silent", "--show-error", "--include", "--noproxy", "*", "--header", "Expect:")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "disturbs: stops or changes something for a moment; runs in the lab only")
    config.addinivalue_line("markers", "late: looks for what takes a while; runs before the next that disturbs")
    config.addinivalue_line("markers", "outside: seen by a client on a side or in the VPN, not over SSH")


# Fixtures by which a check stands outside of the machine.
CLIENTS = {"public", "operator", "tunnel", "stranger"}
# Where the service doesn't run in K3s, one check of each says so for all.
IN_K3S = ("test_images", "test_k3s", "test_k3s_agent", "test_argocd")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Marks what goes through `disturb`, and what is a client's view: `-m "not disturbs and not outside"`."""
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


def _put_off_the_late(items: list[pytest.Item]) -> None:
    """What a check waits for goes on during those that follow, unless one of them stops something."""
    for late in [item for item in items if item.get_closest_marker("late")]:
        following = items[items.index(late) + 1 :]
        calm = list(itertools.takewhile(lambda item: not item.get_closest_marker("disturbs"), following))
        items.remove(late)
        items.insert(len(items) - len(following) + len(calm), late)


def _runs_in_k3s() -> bool:
    environment: Any = os.environ.get(ENVIRONMENT_VARIABLE, "lab")
    return the_target(environment, os.environ.get(HOST_VARIABLE)).settings.workload.runtime == "k3s"


def not_exercised(why: str) -> NoReturn:
    """Ends the check as NOT EXERCISED: neither passed nor failed, and listed in every report."""
    pytest.skip(f"NOT EXERCISED: {why}")


def eventually(check: Callable[[], Any], within_s: float, every_s: float = 0.1) -> Any:
    """What `check` returned last: the first thing that counts as true, or what it was when time ran out."""
    give_up_at = time.monotonic() + within_s
    while not (found := check()) and time.monotonic() < give_up_at:
        time.sleep(every_s)
    return found


@dataclass(frozen=True)
class Side:
    """A place from which the machine is reached.

    Attributes:
        name: "public" or "operator".
        ipv4: the machine's address on this side.
        ipv6: the same; None where it isn't known.
        prefix: what a command is started with to run there.
    """

    name: str
    ipv4: str
    ipv6: str | None
    prefix: tuple[str, ...]

    @property
    def addresses(self) -> list[str]:
        """The machine's addresses on this side."""
        return [address for address in (self.ipv4, self.ipv6) if address]

    def run(self, *argv: str, stdin: str = "", timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        """Runs a program there."""
        return subprocess.run([*self.prefix, *argv], input=stdin, capture_output=True, text=True, timeout=timeout_s)

    def reaches(self, port: int, within_s: float = 3) -> bool:
        """Whether a TCP connection to the machine is accepted, sooner or later."""

        def connects() -> bool:
            return self.run("bash", "-c", f"timeout 2 bash -c '</dev/tcp/{self.ipv4}/{port}'").returncode == 0

        return bool(eventually(connects, within_s))


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `code` is 0 when there was none, and `body` then says why. Header names are in lower case."""

    code: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


def parse_answer(text: str) -> Answer:
    """The last answer in what `curl --include` printed."""
    head, _, body = text.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.splitlines()
    if status.split()[1].startswith("1"):
        return parse_answer(body)
    fields = (line.split(":", 1) for line in lines)
    return Answer(int(status.split()[1]), {name.lower(): value.strip() for name, value in fields}, body)


@pytest.fixture(scope="session")
def environment() -> str:
    return os.environ.get(ENVIRONMENT_VARIABLE, "lab")


@pytest.fixture(scope="session")
def target(environment: str) -> Target:
    return the_target(environment, os.environ.get(HOST_VARIABLE))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def settings(target: Target) -> Settings:
    return target.settings


@pytest.fixture(scope="session")
def public(environment: str, target: Target) -> Side:
    return _side("public", environment, target)


@pytest.fixture(scope="session")
def operator(environment: str, target: Target) -> Side:
    return _side("operator", environment, target)


@pytest.fixture(scope="session")
def tunnel(environment: str, target: Target, settings: Settings) -> Side:
    """The machine as a peer of its VPN sees it."""
    if target.role != "mini":
        not_exercised("the mini PC alone has a VPN")
    prefix: tuple[str, ...] = ()
    if environment == "lab":
        from minipc.lab import find
        from minipc.lab import tunnel as lab_tunnel

        machine = find(target.alias)
        assert machine, f"{target.alias} is no lab machine"
        lab_tunnel.up(machine)
        prefix = ("ip", "netns", "exec", "operator")
    side = Side("vpn", settings.vpn.address, settings.vpn.address_ipv6, prefix)
    if not side.reaches(22, within_s=10) and environment != "lab":
        not_exercised("this controller has no tunnel to the machine: minipc vpn add NAME, then wg-quick up FILE")
    return side


def _side(name: str, environment: str, target: Target) -> Side:
    if environment != "lab":
        return Side(name, target.data["ssh_hostname"], None, ())
    from minipc.lab import find

    machine = find(target.alias)
    assert machine, f"{target.alias} is no lab machine"
    addresses = {
        "public": (machine.public_ipv4, machine.public_ipv6),
        "operator": (machine.operator_ipv4, machine.operator_ipv6),
    }[name]
    return Side(name, *addresses, prefix=("ip", "netns", "exec", name))


@pytest.fixture(scope="session")
def sh(target: Target) -> Iterator[Shell]:
    """Runs a shell command on the machine and returns what it printed; fails the check when the command fails."""
    backend = remote_shell.ShellBackend(ssh.write_config([(target.alias, target.data)]), target.alias)
    machine = Host(backend)

    def run(command: str) -> str:
        done = machine.run(command)
        assert done.rc == 0, f"{command}\n{done.stderr.strip() or done.stdout.strip()}"
        return str(done.stdout).strip()

    yield run
    backend.shell.close()


@pytest.fixture(scope="session")
def script(target: Target) -> Shell:
    """Runs a shell script that the machine reads from stdin, so that no secret in it is ever in a command line.

    Returns what it printed, errors included; whether it succeeded is for the check to judge from that.
    """
    config = ssh.write_config([(target.alias, target.data)])

    def run(text: str) -> str:
        # In one group, so that the whole script is read before its first command, whose stdin is another.
        done = ssh.run(config, target.alias, "sh -s", stdin=f"{{\n{text}\n}} </dev/null 2>&1\n")
        return done.stdout.decode().strip()

    return run


@pytest.fixture(scope="session")
def disturb(environment: str, sh: Shell) -> Shell:
    """`sh` for commands that stop or change something for a moment."""
    if environment != "lab":
        not_exercised("it would stop or change something on a machine in service; the lab exercises it")
    return sh


@pytest.fixture(scope="session")
def secrets(environment: str, settings: Settings) -> Secrets:
    """The passwords of PostgreSQL's roles and Redis's users. Reveal one only where it becomes part of a `script`."""
    names = [f"postgres.password.{role.name}" for role in settings.postgres.roles]
    return load(environment, [*names, *(f"redis.password.{user.name}" for user in settings.redis.users)])


@pytest.fixture(scope="session")
def units(sh: Shell) -> Callable[[str], Mapping[str, str]]:
    """Properties of a systemd unit, fetched once for each unit."""
    known: dict[str, Mapping[str, str]] = {}

    def properties(name: str) -> Mapping[str, str]:
        if name not in known:
            known[name] = dict(line.split("=", 1) for line in sh(f"systemctl show {name}").splitlines() if "=" in line)
        return known[name]

    return properties


@pytest.fixture(scope="session")
def exposure(sh: Shell) -> Callable[[str], float]:
    """How much of the machine a service could reach if it were taken over: 0 nothing, 10 all (systemd-analyze)."""

    def measure(unit: str) -> float:
        verdict = sh(f"systemd-analyze security --no-pager {unit} 2>/dev/null | grep 'Overall exposure'")
        return float(verdict.split(": ")[1].split()[0])

    return measure


@pytest.fixture(scope="session")
def listeners(sh: Shell) -> Iterable[tuple[str, int, str]]:
    """Address, port and program of every listening TCP socket."""
    found = []
    for line in sh("ss -Hltnp").splitlines():
        fields = line.split()
        address, _, port = fields[3].rpartition(":")
        program = fields[5].split('"')[1] if len(fields) > 5 else ""
        found.append((address.strip("[]"), int(port), program))
    return found


@pytest.fixture(scope="session")
def sql(sh: Shell, settings: Settings) -> Shell:
    """Runs SQL as the database's superuser, over its local socket."""

    def run(statement: str, database: str = "postgres") -> str:
        psql = f"psql -XAtq -v ON_ERROR_STOP=1 -p {settings.postgres.port} -d {database} -c {shlex.quote(statement)}"
        return sh(f"cd / && runuser -u postgres -- {psql}")

    return run


@pytest.fixture(scope="session")
def redis(script: Shell, settings: Settings) -> Callable[..., list[str]]:
    """Sends commands to Redis, one in each line, as a user, and returns the answers; without a user as a stranger."""

    def run(commands: Iterable[str], user: str | None = None, password: str | None = None) -> list[str]:
        cli = f"redis-cli -h {settings.host.service_address} -p {settings.redis.port} --no-auth-warning"
        if user:
            cli = f"REDISCLI_AUTH={password} {cli} --user {user}"
        lines = "\n".join(commands)
        return script(f"{cli} <<'END'\n{lines}\nEND").splitlines()

    return run


@pytest.fixture(scope="session")
def k3s_is_here(settings: Settings, sh: Shell) -> None:
    """NOT EXERCISED where no cluster is wanted, or none could be had."""
    if settings.workload.runtime != "k3s":
        not_exercised(f"the service runs as a {settings.workload.runtime}")
    if not sh("ls /usr/local/bin/k3s 2>/dev/null || true"):
        not_exercised("the artifact k3s could not be had")


@pytest.fixture(scope="session")
def service(sh: Shell, settings: Settings) -> Service:
    """The service where it runs; where K3s could not be had, it isn't deployed."""
    if settings.workload.runtime == "stand-in":
        return StandIn(sh, {"api": settings.workload.port, **settings.workload.metrics_ports})
    if not sh("ls /usr/local/bin/k3s 2>/dev/null || true"):
        not_exercised("the artifact k3s could not be had, so no service is deployed")
    return InK3s(sh)


@pytest.fixture(scope="session")
def as_workload(redis: Callable[..., list[str]], secrets: Secrets) -> Callable[..., list[str]]:
    """Sends commands to Redis as the service."""
    return lambda *commands: redis(commands, "workload", secrets["redis.password.workload"].reveal())


@pytest.fixture(scope="session")
def api(sh: Shell, settings: Settings) -> Callable[..., Answer]:
    """Sends a request to the API on the machine itself, past the edge."""

    def request(path: str, *options: str, timeout_s: float = 10) -> Answer:
        url = f"http://127.0.0.1:{settings.workload.port}{path}"
        argv = [*CURL, "--max-time", str(timeout_s), *options, url]
        text = sh(f'out=$({shlex.join(argv)} 2>&1) && printf %s "$out" || printf \'no answer: %s\' "$out"')
        return parse_answer(text) if text.startswith("HTTP/") else Answer(0, {}, text)

    return request


@pytest.fixture(scope="session")
def edge(public: Side, settings: Settings, sh: Shell, target: Target) -> Edge:
    """The public door, as a client on the public side sees it."""
    return Edge(public, settings.edge.domain, internal_ca(sh, target) if settings.edge.acme == "internal" else None)


class Edge:
    """Requests to the public name, sent from the public side, with the certificate verified."""

    def __init__(self, side: Side, domain: str, ca: str | None) -> None:
        self.side = side
        self.domain = domain
        self.trust = ("--cacert", ca) if ca else ()

    def get(self, path: str, *options: str, scheme: str = "https", address: str | None = None) -> Answer:
        """One request; `address` is the machine's IPv4 address unless told."""
        argv = [*CURL, "--max-time", "15", "--path-as-is", *self.to(address or self.side.ipv4), *options]
        done = self.side.run(*argv, f"{scheme}://{self.domain}{path}")
        return parse_answer(done.stdout) if done.stdout else Answer(0, {}, done.stderr.strip())

    def to(self, address: str) -> list[str]:
        """curl's options that lead the public name to an address and verify the certificate."""
        host = bracketed(address)
        return ["--resolve", f"{self.domain}:80:{host}", "--resolve", f"{self.domain}:443:{host}", *self.trust]


def internal_ca(sh: Shell, target: Target) -> str:
    """The lab's own certificate authority, fetched over SSH into a file that the client trusts."""
    path = state_dir("ssh") / f"internal-ca+{target.alias}.crt"
    path.write_text(sh("cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt") + "\n", encoding="utf-8")
    return str(path)
