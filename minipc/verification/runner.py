"""Run `tests/verify` against a machine and return the outcome of each check.

The checks are plain pytest with testinfra, so `pytest tests/verify --hosts=… --ssh-config=…` works as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minipc.config.components import select
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError
from minipc.core.paths import ROOT
from minipc.core.variables import ENVIRONMENT_VARIABLE, EVENTS_VARIABLE, HOST_VARIABLE, SERVICE_VARIABLE
from minipc.evidence.event_stream import CheckEnd, read
from minipc.remote import ssh
from minipc.remote.inventory import Target
from minipc.secrets.key_file import handed_on

_PYTEST_FAILED, _PYTEST_OK = 1, 0
# A check that reads something that appears with a delay (a metric, a log line) may come too early. It is repeated
# once; what it said the first time stays in its result. Two scrapes of Prometheus are 30 s.
_RETRY_AFTER_S = 20
FIXTURES = "tests.verify.conftest"
"""Fixtures for the checks of a service itself, which are in a folder of the user's."""
SMOKE = "tests/verify/smoke/test_smoke.py"
"""The smoke test: short, and the same for `minipc verify --smoke`, every rebuild and every rehearsal."""


@dataclass(frozen=True)
class Verification:
    """The outcomes of a run of the checks."""

    checks: list[CheckEnd]

    @property
    def failed(self) -> list[CheckEnd]:
        """Return the checks that failed."""
        return [check for check in self.checks if check.outcome == "failed"]

    @property
    def not_exercised(self) -> list[CheckEnd]:
        """Return the checks that could not be exercised here."""
        return [check for check in self.checks if check.outcome == "not-exercised"]

    def demand(self) -> Verification:
        """Return itself if nothing failed.

        Raises:
            MinipcError: at least one check failed; the message contains how many.
        """
        if self.failed:
            raise MinipcError(self.summary, "run `minipc verify` to see each of them")
        return self

    @property
    def summary(self) -> str:
        """Return the counts: `57 passed, 1 failed, 5 not exercised`."""
        failed, gaps = len(self.failed), len(self.not_exercised)
        return f"{len(self.checks) - failed - gaps} passed, {failed} failed, {gaps} not exercised"


def verify(
    environment: Environment,
    target: Target,
    components: Iterable[str],
    *,
    events: Path,
    log: Path,
    env: dict[str, str] | None = None,
) -> Verification:
    """Run the checks of the named components; of all if none is named. With `services`, those of each service, too.

    Raises:
        ConfigError: a component is unknown.
        CouldNotVerifyError: the machine cannot be reached, or pytest itself failed.
    """
    selected = select(components, target.role)
    files = [component.verify for component in selected]
    found = _run(environment, target, files, events=events, log=log, env=env)
    if "services" not in {component.name for component in selected}:
        return found
    checks = [*found.checks]
    for service in target.settings.services.declared:
        if service.verify:
            own = {SERVICE_VARIABLE: service.name} | (env or {})
            folder = str(service.beside(service.verify))
            checks += _run(environment, target, [folder], events=events, log=log, env=own, plugin=FIXTURES).checks
    return Verification(checks)


def smoke(environment: Environment, target: Target, *, events: Path, log: Path) -> Verification:
    """Run the smoke test.

    Raises:
        ConfigError: the machine is not the mini PC.
        CouldNotVerifyError: as in `verify`.
    """
    if target.role != "mini":
        raise ConfigError(
            f"the smoke test is for the mini PC; {target.alias} has the role {target.role}",
            "name the mini PC with --host",
        )
    return _run(environment, target, [SMOKE], events=events, log=log)


def _run(
    environment: Environment,
    target: Target,
    paths: Sequence[str],
    *,
    events: Path,
    log: Path,
    env: dict[str, str] | None = None,
    plugin: str | None = None,
) -> Verification:
    files = [str(ROOT / path) for path in paths]
    config = ssh.write_config([(target.alias, target.data)])
    before = len(_checks(events))
    # Connect first: an unreachable machine is then one clear error instead of one for each check.
    ssh.run(config, target.alias, "true", timeout_s=30)
    try:
        code = _pytest(environment, target.alias, files, config, events, log, env or {}, plugin)
    finally:
        ssh.close(config, [target.alias])
    checks = _checks(events)[before:]
    if code not in (_PYTEST_OK, _PYTEST_FAILED) or not checks:
        raise CouldNotVerifyError(
            f"the checks could not run (pytest ended with {code}, {len(checks)} checks)", f"read {log}"
        )
    return Verification(checks)


def _checks(events: Path) -> list[CheckEnd]:
    return [event for event in read(events) if isinstance(event, CheckEnd)] if events.exists() else []


def _pytest(
    environment: Environment,
    alias: str,
    files: Sequence[str],
    config: Path,
    events: Path,
    log: Path,
    env: dict[str, str],
    plugin: str | None,
) -> int:
    argv = [sys.executable, "-m", "pytest", "-p", "minipc.verification.pytest_plugin", "-p", "no:cacheprovider"]
    argv += ["-p", plugin] if plugin else []
    argv += ["--reruns", "1", "--reruns-delay", str(_RETRY_AFTER_S)]
    argv += [f"--hosts=ssh://{alias}", f"--ssh-config={config}", "--tb=short", "--rootdir", str(ROOT), *files]
    variables = os.environ | env
    variables |= {EVENTS_VARIABLE: str(events), ENVIRONMENT_VARIABLE: environment.name, HOST_VARIABLE: alias}
    with log.open("ab") as output, handed_on(environment) as (key, descriptors):
        return subprocess.run(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables | key,
            pass_fds=descriptors,
        ).returncode
