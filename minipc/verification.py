"""Runs `tests/verify` against a machine and tells what each check saw.

The checks are plain pytest with testinfra's `host`, so `pytest tests/verify --hosts=… --ssh-config=…` works too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minipc import ssh
from minipc.components import select
from minipc.errors import ConfigError, CouldNotVerifyError, MinipcError
from minipc.inventory import Environment, Target
from minipc.paths import ROOT
from minipc.timeline import CheckEnd, read
from minipc.variables import ENVIRONMENT_VARIABLE, EVENTS_VARIABLE, HOST_VARIABLE

_PYTEST_FAILED, _PYTEST_OK = 1, 0
SMOKE = "tests/verify/smoke/test_smoke.py"
"""The smoke list: short, and the same for `minipc verify --smoke`, every rebuild and every rehearsal."""


@dataclass(frozen=True)
class Verification:
    """What a run of the checks saw."""

    checks: list[CheckEnd]

    @property
    def failed(self) -> list[CheckEnd]:
        """The checks that failed."""
        return [check for check in self.checks if check.outcome == "failed"]

    @property
    def not_exercised(self) -> list[CheckEnd]:
        """The checks that could not be tried here."""
        return [check for check in self.checks if check.outcome == "not-exercised"]

    def demand(self) -> Verification:
        """Itself, when nothing failed.

        Raises:
            MinipcError: says how many checks failed; which ones, the events say.
        """
        if self.failed:
            raise MinipcError(self.summary, "`minipc verify` shows each")
        return self

    @property
    def summary(self) -> str:
        """`57 passed, 1 failed, 5 not exercised`."""
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
    """Runs the checks of the named components (all when none is named).

    Raises:
        ConfigError: an unknown component.
        CouldNotVerifyError: the machine can't be reached, or pytest itself broke.
    """
    files = [component.verify for component in select(components, target.role)]
    return _run(environment, target, files, events=events, log=log, env=env)


def smoke(environment: Environment, target: Target, *, events: Path, log: Path) -> Verification:
    """Goes through the smoke list.

    Raises:
        ConfigError: the machine is not the mini PC.
        CouldNotVerifyError: as in `verify`.
    """
    if target.role != "mini":
        raise ConfigError(
            f"the smoke list is the mini PC's; {target.alias} is an {target.role} machine", "name another"
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
) -> Verification:
    files = [str(ROOT / path) for path in paths]
    config = ssh.write_config([(target.alias, target.data)])
    before = len(_checks(events))
    # Opened here, so that an unreachable machine is one clear error instead of one for each check.
    ssh.run(config, target.alias, "true", timeout_s=30)
    try:
        code = _pytest(environment, target.alias, files, config, events, log, env or {})
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
) -> int:
    argv = [sys.executable, "-m", "pytest", "-p", "minipc.verification_plugin", "-p", "no:cacheprovider"]
    argv += [f"--hosts=ssh://{alias}", f"--ssh-config={config}", "--tb=short", "--rootdir", str(ROOT), *files]
    variables = os.environ | env
    variables |= {EVENTS_VARIABLE: str(events), ENVIRONMENT_VARIABLE: environment, HOST_VARIABLE: alias}
    with log.open("ab") as output:
        return subprocess.run(
            argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=variables
        ).returncode
