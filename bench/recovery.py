"""`python -m bench.recovery`: measure drill, restore and rebuild with a database of a given size.

All in one run, with a dated record. It is not a test. What is measured: docs/concepts/recovery-time.md.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from bench.latency import Answer, p95, read_answers
from bench.machine import enrol, prepare
from bench.processors import confined, halves
from bench.results import Measurement, Share, recorded
from bench.timing import Sample, alternate, machine_cpu_seconds, ratio
from minipc.config.components import deploy_files
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError
from minipc.core.formatting import duration
from minipc.core.paths import ROOT
from minipc.evidence import records
from minipc.evidence.display import console_for, print_summary, watch
from minipc.evidence.event_stream import PhaseEnd, PhaseStart, read
from minipc.evidence.records import Gate
from minipc.evidence.run import PhaseFailedError, Run
from minipc.pyinfra_ext.converge import converge
from minipc.remote import psql
from minipc.remote.inventory import Target
from minipc.remote.queries import describe, on, query
from minipc.remote.results import parse_result
from minipc_machine.backup_state import RESTORE, Restore
from playbooks import rebuild
from playbooks.backup import take
from playbooks.phases import PUBLIC_NAME, UP_TO_INGRESS
from playbooks.restore_drill import run_on_machine
from rehearsal import lab
from rehearsal.data_loss import CA_FILE

MACHINE, OFFSITE = "bench-r", "offsite-bench-r"
TIMES_IDLE = 1.5
SHARE_OF_BARE = 0.9
IDLE_S = 30.0
LIMIT_S = 3 * 3600
DATA = "/var/lib/postgresql/17/main"
UNIT = "postgresql@17-main.service"
# Text that zstd compresses to half its size, like a service's rows: neither constant nor random.
FILL = """
CREATE TABLE IF NOT EXISTS bench_fill (id bigserial PRIMARY KEY, at timestamptz DEFAULT now(), body text);
INSERT INTO bench_fill (body)
SELECT string_agg(md5(random()::text), ' ') FROM generate_series(1, {rows}) AS row, generate_series(1, 24) GROUP BY row;
"""
ROWS_PER_STEP = 100_000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size-gb", type=click.FloatRange(0.05, 50), default=1.0, show_default=True, help="Of the database.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Of restores and of drills.")
@click.option("--drills/--no-drills", default=True, help="What a drill costs the living service.")
def bench(size_gb: float, rounds: int, drills: bool) -> None:
    """Measure drill, restore and rebuild with a database of that size. Exit with 1 if a target is missed."""
    run = Run("benchmark")
    measured: list[Measurement] = []
    machine: records.Target | None = None
    with watch(run.events):
        run.note(f"load average at the start {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
        try:
            target = _machines(run, size_gb)
            machine = describe(target, "nspawn")
            _fill(run, target, size_gb)
            if drills:
                measured.append(_drill_cost(run, target, rounds))
            measured.append(_restores(run, target, rounds))
            measured.append(_rebuild(run, target, size_gb))
        except PhaseFailedError as failed:
            run.note(f"{failed}; log: {run.log}")
        finally:
            lab.down([MACHINE, f"{MACHINE}-2", OFFSITE])
    if machine is None:
        sys.exit(f"there was no machine to measure; see {run.log}")
    record = recorded(run, machine, measured, "podman")
    report_path, record_path = run.publish(record)
    print_summary(record, report_path=report_path, record_path=record_path)
    for each in measured:
        each.print(console_for())
    sys.exit(records.exit_code(record))


def _machines(run: Run, size_gb: float) -> Target:
    # Database, its copy aside or in a drill, a repository, WAL; and the packages.
    disk_gb = int(6 + 4 * size_gb) + 1
    with run.phase("prepare", "programs, base image, secrets"):
        prepare()
    with run.phase("two converged machines"):
        enrol(lab.up(OFFSITE, disk_gb=disk_gb))
        target = enrol(lab.up(MACHINE, disk_gb=disk_gb))
        for name in (OFFSITE, MACHINE):
            converge(LAB, deploy_files(), log=run.log, limit=name)
    return target


def _fill(run: Run, target: Target, size_gb: float) -> None:
    """Insert rows until the database has its size, then take a full backup into both repositories."""
    ask = psql.command(target.settings.postgres, psql.OWN, timeout_s=LIMIT_S)
    with run.phase("fill", f"{size_gb:g} GB") as detail:
        while (size := int(query(target, psql.OWN, f"SELECT pg_database_size('{psql.OWN}')"))) < size_gb * 1e9:
            on(target, ask, FILL.format(rows=ROWS_PER_STEP), timeout_s=LIMIT_S)
        on(target, ask, "VACUUM ANALYZE bench_fill;", timeout_s=LIMIT_S)
        on(target, psql.command(target.settings.postgres, psql.SUPERUSER, timeout_s=LIMIT_S), "CHECKPOINT;")
        detail(f"{size / 1e9:.2f} GB")
    with run.phase("full backup", "into both repositories") as detail:
        outcomes = take(target, "full")
        if failed := [f"{repo}: {each.error}" for repo, each in outcomes.items() if not each.success]:
            raise MinipcError("; ".join(failed))
        detail(", ".join(f"{repo} {each.size / 1e6:.0f} MB, {each.seconds:.0f} s" for repo, each in outcomes.items()))


# --- the drill ------------------------------------------------------------------------------------------------------


def _drill_cost(run: Run, target: Target, rounds: int) -> Measurement:
    """Measure the service's response times during a drill, and just before it."""
    ratios, remarks, idle_all, busy_all, lost = [], [], [], [], 0
    kept, drills = halves(os.cpu_count() or 1)
    with (
        tempfile.TemporaryDirectory(prefix="minipc-bench-") as folder,
        confined(OFFSITE, drills),
        _asking(target, Path(folder), kept) as file,
    ):
        for number in range(1, rounds + 1):
            with run.phase(f"drill {number} of {rounds}", f"after {IDLE_S:.0f} s without") as detail:
                begin = time.time()
                time.sleep(IDLE_S)
                middle = time.time()
                result = run_on_machine(target, 2 - number % 2)
                end = time.time()
                if result.verdict != "pass":
                    raise MinipcError(f"the drill did not pass: {result.reason}")
                answers = read_answers(file)
                idle, busy = _within(answers, begin, middle), _within(answers, middle, end)
                lost += sum(each.code != 200 for each in busy)
                idle_all.append(p95(idle))
                busy_all.append(p95(busy))
                ratios.append(p95(busy) / p95(idle))
                steps = ", ".join(f"{each.name} {each.ended - each.started:.1f} s" for each in result.phases)
                detail(f"p95 {p95(idle) * 1000:.1f} ms, during it {p95(busy) * 1000:.1f} ms")
                remarks.append(f"drill of repo{result.repo}, {end - middle:.0f} s: {steps}")
    remarks.insert(
        0,
        f"p95 of /api/health: {statistics.median(idle_all) * 1000:.1f} ms idle, "
        f"{statistics.median(busy_all) * 1000:.1f} ms during a drill; {lost} answers were not 200",
    )
    # Both are other computers: neither takes the processors that a drill leaves to the service, or waits for its own.
    remarks.append(f"the client on CPU {_listed(kept)}; the off-site machine with the drill on CPU {_listed(drills)}")
    gate = Gate.judge("p95 during a drill, times idle", budget=TIMES_IDLE, seen=statistics.median(ratios), unit="×")
    return Measurement("What a drill costs the living service", [], [gate], remarks=remarks)


def _within(answers: Sequence[Answer], begin: float, end: float) -> list[Answer]:
    return [each for each in answers if begin <= each.at < end]


@contextmanager
def _asking(target: Target, folder: Path, cpus: set[int]) -> Iterator[Path]:
    """Send requests from the public side, on these CPUs, within the block. Yield the file with the answers."""
    machine = lab.find(target.alias)
    if machine is None:
        raise MinipcError(f"there is no machine {target.alias}")
    authority, out = folder / "ca.crt", folder / "answers"
    authority.write_text(on(target, f"cat {CA_FILE}") + "\n", encoding="utf-8")
    argv = ["ip", "netns", "exec", "public", sys.executable, "-m", "bench.latency", "--address", machine.public_ipv4]
    service = target.settings.services.public[0]
    path = service.health.live if service.health else "/"
    argv += ["--domain", str(service.domain), "--path", path, "--ca", str(authority), "--out", str(out)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL)
    os.sched_setaffinity(process.pid, cpus)
    try:
        yield out
    finally:
        process.terminate()
        process.wait(timeout=30)


def _listed(cpus: set[int]) -> str:
    return ", ".join(map(str, sorted(cpus)))


# --- the restore ----------------------------------------------------------------------------------------------------


def _restores(run: Run, target: Target, rounds: int) -> Measurement:
    """Restore the database from the off-site repository, with the rebuild's program and with pgBackRest alone."""
    restore = {
        "minipc restore": "/usr/local/lib/minipc/restore restore",
        "pgbackrest restore": f"install -d -o postgres -g postgres -m 700 {DATA} && cd / && "
        "runuser -u postgres -- pgbackrest --stanza=main --repo=2 restore",
    }

    def contestant(name: str) -> Callable[[int], Sample]:
        def once(number: int) -> Sample:
            with run.phase(f"restore, {name}: {number} of {rounds}") as detail:
                on(target, f"rm -rf {DATA}; sync", timeout_s=LIMIT_S)
                began, before = time.monotonic(), machine_cpu_seconds(target.alias)
                on(target, restore[name], timeout_s=LIMIT_S)
                sample = Sample(time.monotonic() - began, machine_cpu_seconds(target.alias) - before)
                detail(f"{sample.seconds:.1f} s")
            return sample

        return once

    _without_database(run, target)
    with run.phase("restore, unmeasured", "so that the repository is in the memory of its machine for both"):
        on(target, restore["pgbackrest restore"], timeout_s=LIMIT_S)
    ours, bare = alternate({name: contestant(name) for name in restore}, rounds)
    size = int(on(target, f"du -sb {DATA} | cut -f1"))
    remarks = [f"{each.name}: {size / each.seconds / 1e6:.0f} MB/s of the restored directory" for each in (ours, bare)]
    remarks.append("from the off-site repository over SFTP, the local one hidden, as after a loss")
    gate = Gate.judge(
        "restore throughput, of a bare one's", budget=SHARE_OF_BARE, seen=ratio(bare, ours), unit="×", bound="at-least"
    )
    return Measurement(f"Restoring {size / 1e9:.2f} GB", [ours, bare], [gate], remarks=remarks)


def _without_database(run: Run, target: Target) -> None:
    """Make the machine like a new one for a rebuild: no database, no local repository, no writers."""
    with run.phase("no database", "stopped and gone, and no local repository"):
        on(
            target,
            f"systemctl stop 'minipc-*.timer' {UNIT}; find /var/lib/pgbackrest -mindepth 1 -delete; rm -rf {DATA}",
            timeout_s=LIMIT_S,
        )


# --- the rebuild ----------------------------------------------------------------------------------------------------


def _rebuild(run: Run, target: Target, size_gb: float) -> Measurement:
    """Destroy the machine and measure the rebuild on a blank one, phase by phase, until the service answers."""
    with run.phase("lose the machine", "power and disk"):
        lab.down(MACHINE)
        lost_at = time.time()
    with run.phase("boot again", "a blank machine in its place"):
        fresh = enrol(lab.up(f"{MACHINE}-2", disk_gb=int(6 + 4 * size_gb) + 1))
    rebuild.begin(fresh, "", run.note)
    rebuild.fence(run, LAB, fresh)
    for phase in UP_TO_INGRESS:
        rebuild.come_back(run, LAB, fresh, phase)
    rebuild.lead_the_name(run, LAB, fresh)
    rebuild.public_name(run, fresh)
    shares, total = phases_since(run, lost_at)
    run.rto_seconds = total
    run.rto_budget_seconds = target.settings.backups.rto_budget_s
    copied = parse_result(Restore, on(fresh, f"cat {RESTORE}"), str(RESTORE))
    remarks = [
        f"RTO {duration(total)}",
        f"copying the database from repo{copied.repo}: {copied.seconds:.1f} s of it",
    ]
    return Measurement("The rebuild, from the loss until the service answers", [], [], shares, remarks)


def phases_since(run: Run, moment: float) -> tuple[list[Share], float]:
    """Return each phase from the loss until the public name answers, with its share, and the total time."""
    events = list(read(run.events))
    starts = {each.phase: each.t for each in events if isinstance(each, PhaseStart) and each.t >= moment - 0.001}
    ends = {each.phase: each.t for each in events if isinstance(each, PhaseEnd) and each.phase in starts}
    total = ends.get(PUBLIC_NAME.name, max(ends.values())) - moment
    taken = {phase: ends[phase] - starts[phase] for phase in ends if ends[phase] <= moment + total}
    return [Share(f"{phase} ({seconds / total:.0%})", seconds) for phase, seconds in taken.items()], total


if __name__ == "__main__":
    bench()
