"""Write through the service as users do, and measure which acknowledged writes a rebuild restored."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minipc.core.errors import MinipcError
from minipc.core.paths import ROOT
from minipc.evidence.records import DataClassResult, Gate
from minipc.evidence.run import Run
from minipc.remote.inventory import Target
from minipc.remote.queries import on, query
from playbooks.backup import take
from rehearsal import lab
from rehearsal.load_generator import Write, id_of, read_acknowledged, write_plan

CA_FILE = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
# A machine whose segments are archived on time may lose one archive_timeout, and the time of the push.
ARCHIVE_GRACE_S = 60
ALL_REPOSITORIES = ("repo1", "repo2", "restic")


@dataclass(frozen=True)
class AcknowledgedWrites:
    """The writes that users saw acknowledged before the machine was lost.

    Attributes:
        run: id of the run in which they were made.
        lost_at: moment of the loss, epoch seconds.
    """

    run: str
    writes: list[Write]
    lost_at: float

    @classmethod
    def before(cls, lost_at: float, run: Run, list_file: Path) -> AcknowledgedWrites:
        """Return the writes in a list that were acknowledged before the loss."""
        return cls(run.id, [write for write in read_acknowledged(list_file) if write.at <= lost_at], lost_at)


@contextmanager
def load_running(run: Run, machine: lab.Machine, target: Target) -> Iterator[Path]:
    """Write from the public side as long as the block lasts. Yields the list of acknowledged writes.

    A service whose file does not say what users write is NOT EXERCISED by name.
    """
    list_file = run.directory / "acknowledged.jsonl"
    services = target.settings.services.declared
    for service in services:
        if service.rehearsal is None or not service.rehearsal.writes:
            run.not_exercised(f"data loss of {service.name}", "its service file has no rehearsal.writes", "services")
    ca_file, plan_file = run.directory / "ca.crt", run.directory / "load.json"
    if not write_plan(plan_file, services):
        yield list_file
        return
    ca_file.write_text(on(target, f"cat {CA_FILE}") + "\n", encoding="utf-8")
    argv = ["ip", "netns", "exec", "public", sys.executable, "-m", "rehearsal.load_generator"]
    argv += ["--plan", str(plan_file), "--address", machine.public_ipv4, "--ca", str(ca_file)]
    argv += ["--run", run.id, "--acknowledged", str(list_file)]
    with run.log.open("ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield list_file
    finally:
        process.terminate()
        process.wait(timeout=30)


def use_and_back_up(target: Target, seconds: float, required: Collection[str] = ALL_REPOSITORIES) -> str:
    """Let users write for a while, then back up into all repositories. Returns a sentence.

    Args:
        required: repositories whose backup must succeed.

    Raises:
        MinipcError: a required backup failed.
    """
    time.sleep(seconds)
    outcomes = take(target)
    failed = [repo for repo in sorted(required) if not outcomes[repo].success]
    if failed:
        raise MinipcError(
            "; ".join(f"{repo}: {outcomes[repo].error}" for repo in failed),
            "`journalctl -u 'minipc-backup@*' -n 50` on the machine",
        )
    return ", ".join(f"{repo} {outcome.seconds:.1f} s" for repo, outcome in sorted(outcomes.items()))


def measure_data_loss(run: Run, target: Target, acknowledged: AcknowledgedWrites) -> None:
    """Assert that only the newest writes are missing, and measure how old the newest restored write is.

    Raises:
        MinipcError: no write was restored, although some were acknowledged.
    """
    newest = 0.0
    expected_any = False
    for service in target.settings.services.declared:
        for kind, each in enumerate(service.rehearsal.writes if service.rehearsal else []):
            written = [write for write in acknowledged.writes if (write.service, write.kind) == (service.name, kind)]
            expected_any = expected_any or bool(written)
            database = service.postgres.database if service.postgres else ""
            numbers = _written_numbers(target, acknowledged.run, database, each.find)
            restored = [write for write in written if write.number in numbers]
            newest = max(newest, *(write.at for write in restored), 0.0)
            run.data_classes.append(_judged(f"{service.name}: {each.data_class}", written, restored))
    if not expected_any:
        return
    if not newest:
        raise MinipcError("none of the users' writes was restored", "check the backups: `minipc verify backups`")
    run.rpo_seconds = max(0.0, acknowledged.lost_at - newest)
    run.rpo_budget_seconds = target.settings.backups.rpo_budget_s
    # A short rehearsal cannot exceed an RPO of 24 hours. It can exceed this limit.
    limit = target.settings.backups.archive_timeout_s + ARCHIVE_GRACE_S
    run.gates.append(Gate.judge("RPO within archive_timeout", budget=limit, seen=run.rpo_seconds, unit="s"))


def _judged(name: str, written: Sequence[Write], restored: Sequence[Write]) -> DataClassResult:
    """Return the verdict on one kind of write: only the newest may be missing."""
    last = max((write.number for write in restored), default=0)
    expected = [write for write in written if write.number <= last]
    gaps = len(expected) - len(restored)
    return DataClassResult(
        name=name,
        verdict="fail" if gaps or not restored else "pass",
        rows_expected=len(expected),
        rows_found=len(restored),
        detail=f"{len(written)} acknowledged, {len(written) - len(restored)} lost, {gaps} of them in between",
    )


def _written_numbers(target: Target, run: str, database: str, sql: str) -> set[int]:
    """Return the numbers of a run's writes that are in the database; whatever else is there is ignored."""
    prefix = id_of(run, 0).removesuffix("0")
    numbers = (id_.removeprefix(prefix) for id_ in query(target, database, sql).splitlines() if id_.startswith(prefix))
    return {int(number) for number in numbers if number.isdecimal()}
