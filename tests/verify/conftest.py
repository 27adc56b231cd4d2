"""What the checks share. They run against any machine of an inventory, over one SSH connection.

`host` is testinfra's: the machine, as root. `public` and `operator` are the two sides it is reached from: in the lab
a network namespace each, in production the controller itself (which stands on the operator side).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from minipc.config import Settings
from minipc.inventory import Target, the_target
from minipc.variables import ENVIRONMENT_VARIABLE, HOST_VARIABLE


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "disturbs: stops something on the machine for a moment; not run in production")


def not_exercised(why: str) -> NoReturn:
    """Ends the check as NOT EXERCISED: neither passed nor failed, and listed in every report."""
    pytest.skip(f"NOT EXERCISED: {why}")


@dataclass(frozen=True)
class Side:
    """A place from which the machine is reached.

    Attributes:
        name: "public" or "operator".
        address: the machine's IPv4 address on this side.
        prefix: what a command is started with to run there.
    """

    name: str
    address: str
    prefix: tuple[str, ...]

    def run(self, *argv: str, timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )

    def can_connect(self, port: int, address: str | None = None) -> bool:
        """Whether a TCP connection is accepted."""
        target = f"/dev/tcp/{address or self.address}/{port}"
        return self.run("timeout", "3", "bash", "-c", f"exec 3<>{target}").returncode == 0


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


def _side(name: str, environment: str, target: Target) -> Side:
    if environment == "lab":
        from minipc.lab import find

        return Side(name, find(target.alias).addresses[name], ("ip", "netns", "exec", name))
    return Side(name, target.data["ssh_hostname"], ())


@pytest.fixture(scope="session")
def sh(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Runs a shell command on the machine and returns what it printed; fails the check when the command fails."""
    backend: Any = request.getfixturevalue("_testinfra_host_session")

    def run(command: str) -> str:
        done = backend.run(command)
        assert done.rc == 0, f"{command}\n{done.stderr.strip() or done.stdout.strip()}"
        return str(done.stdout).strip()

    return run


@pytest.fixture(scope="session")
def _testinfra_host_session(target: Target) -> Any:
    import testinfra

    from minipc import ssh

    return testinfra.get_host(f"ssh://{target.alias}", ssh_config=str(ssh.write_config([(target.alias, target.data)])))


@pytest.fixture(scope="session")
def units(sh: Callable[..., str]) -> Callable[[str], Mapping[str, str]]:
    """Properties of a systemd unit, fetched once for each unit."""
    known: dict[str, Mapping[str, str]] = {}

    def properties(name: str) -> Mapping[str, str]:
        if name not in known:
            known[name] = dict(line.split("=", 1) for line in sh(f"systemctl show {name}").splitlines() if "=" in line)
        return known[name]

    return properties


@pytest.fixture(scope="session")
def edge(public: Side, settings: Settings, sh: Callable[..., str]) -> Edge:
    """The public door, as a client on the public side sees it."""
    return Edge(public, settings.edge.domain, sh, settings.edge.acme)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `code` is 0 when there was none."""

    code: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


class Edge:
    """Requests to the public name, sent from the public side, with the certificate verified."""

    def __init__(self, side: Side, domain: str, sh: Callable[..., str], acme: str) -> None:
        self.side = side
        self.domain = domain
        self._ca = _internal_ca(sh) if acme == "internal" else None

    def get(self, path: str, *options: str, scheme: str = "https") -> Answer:
        port = {"https": 443, "http": 80}[scheme]
        argv = ["curl", "--silent", "--show-error", "--include", "--max-time", "15", "--noproxy", "*"]
        argv += ["--resolve", f"{self.domain}:{port}:{self.side.address}"]
        if self._ca:
            argv += ["--cacert", self._ca]
        done = self.side.run(*argv, *options, f"{scheme}://{self.domain}{path}")
        if done.returncode:
            return Answer(0, {}, done.stderr.strip())
        head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        lines = head.splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return Answer(int(lines[0].split()[1]), headers, body)


def _internal_ca(sh: Callable[..., str]) -> str:
    """The lab's own certificate authority, fetched over SSH into a file that the client trusts."""
    from minipc.paths import state_dir

    path = state_dir("ssh") / "internal-ca.crt"
    path.write_text(sh("cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt") + "\n", encoding="utf-8")
    return str(path)


def quoted(text: str) -> str:
    return shlex.quote(text)
