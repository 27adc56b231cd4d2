"""Restore drill: restore a backup into a running database beside the live one, check it, and remove it.

    drill [1|2]        the repository to test; without a number the one whose last drill is longest ago
    drill publish      only write the metrics of the stored results

It restores to a moment between two canaries: the first must be there, the second must not. The live stanza is only
read: the scratch cluster has its own configuration, with one repository and archiving off. The migrations of each
service run on it, and must have logged in there and left the live database as it was. Volumes are read from their
newest snapshot and compared with the manifest in it; the copy of a Redis queue is loaded by a scratch server. Exit
0 pass, 1 fail, 4 could not verify.
"""

from __future__ import annotations

import configparser
import operator
import re
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from minipc_machine import backup_state, drill_results, migration_job, queue_drill, schema, sql_names, volume_drill
from minipc_machine.drill_results import Check, Code, NotExercised, Phase, Result, RowCount, Verdict
from minipc_machine.locks import awake, locked
from minipc_machine.program import EXIT_COULD_NOT_VERIFY, EXIT_FAIL, EXIT_PASS, FailedError, say
from minipc_machine.repositories import (
    Settings,
    as_postgres,
    control_data,
    empty_auto_conf,
    pgbackrest,
    repository,
    settings,
    sql,
)

LOCK = backup_state.STATE / "drill.lock"
DRILL_SETTINGS = Path("/etc/minipc/backups/drill.json")
RELEASE = Path("/etc/minipc/release")
SCRATCH = Path("/var/lib/postgresql/minipc-drill")
SEGMENT_BYTES = 16 * 1024 * 1024
# Free disk space needed, in sizes of the database: what is restored, and the WAL that is replayed.
SPACE_FACTOR = 1.3
ARCHIVE_WAIT_S = 120
RECOVERY_WAIT_S = 6 * 3600
START_WAIT_S = 60
MANIFESTS = Path("/etc/minipc/backups/drill")
"""Under podman: what runs the migrations of each service in a drill."""
VERDICTS: dict[int, Verdict] = {EXIT_PASS: "pass", EXIT_FAIL: "fail", EXIT_COULD_NOT_VERIFY: "could-not-verify"}
COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
# How pgBackRest reports a repository that can't be reached.
UNREACHABLE = re.compile(r"unable to connect|timeout|timed out|refused|no route|unreachable|handshake", re.I)


@dataclass(frozen=True)
class Query:
    """A question to the restored database, and what its answer is compared with, such as ">= 1"."""

    name: str
    sql: str
    expect: str


@dataclass(frozen=True)
class Table:
    """A table, and the column with the time of a row; None if it has none."""

    name: str
    timestamp: str | None


@dataclass(frozen=True)
class DataClass:
    """A data class and its tables."""

    name: str
    tables: list[Table]


@dataclass(frozen=True)
class Service:
    """What the drill knows of a service.

    Attributes:
        database: None if it has none.
        owner: role that migrates the database.
        migration_limit_s: how long its migration may take, seconds; None if it declares none.
        queue: folder of its Redis queue; empty if it has none.
    """

    name: str
    database: str | None
    owner: str
    migration_limit_s: int | None
    queries: list[Query]
    classes: list[DataClass]
    queue: str = ""


@dataclass(frozen=True)
class DrillSettings:
    """Settings of the drill. `deploys/backups.py` writes them; they contain no secrets.

    Attributes:
        bin: folder of PostgreSQL's programs.
        address: at which the scratch cluster listens besides its socket, and the live one, too.
        port: of the scratch cluster.
        margin_mb: disk space that must remain free.
        runtime: what runs the services.
    """

    bin: str
    address: str
    port: int
    margin_mb: int
    runtime: Literal["k3s", "podman"]
    services: list[Service]


class Drill:
    """One drill and its result so far."""

    def __init__(self, config: Settings, own: DrillSettings, repo: int) -> None:
        self.config = config
        self.own = own
        self.repo = repo
        self.id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        self.result = Result(repo=repo, started=time.time(), id=self.id, code=release())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record a step with its times and verdict."""
        phase = Phase(name, time.time())
        self.result.phases.append(phase)
        try:
            yield
        except FailedError as error:
            phase.verdict, phase.detail = VERDICTS.get(error.code, "fail"), str(error)
            raise
        except BaseException as error:
            phase.verdict, phase.detail = "could-not-verify", repr(error)
            raise
        finally:
            phase.ended = time.time()
            say(f"{name}: {phase.verdict} {phase.ended - phase.started:.1f} s {phase.detail}".rstrip())

    def check(self, name: str, passed: bool, message: str) -> None:
        """Record whether an expectation was met."""
        phase = self.result.phases[-1].name
        self.result.checks.append(Check(phase, name, "passed" if passed else "failed", message))
        if not passed:
            say(f"FAILED: {name}: {message}")

    def live(self, statement: str, database: str = "minipc") -> str:
        """Run SQL on the live server, with the login of the database (`repositories.sql`)."""
        return sql(statement, database, self.config.port)

    def scratch(self, statement: str, database: str) -> str:
        """Run SQL on the scratch cluster."""
        return sql(statement, database, self.own.port, str(SCRATCH))

    # --- the steps ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run all steps. Raises FailedError from the first one that failed."""
        remove_scratch(self.own.bin)
        with self.phase("preflight"):
            self.preflight()
        with self.phase("canaries"):
            segment = self.set_canaries()
        with self.phase("archive"):
            self.wait_for(segment)
        try:
            with self.phase("restore"):
                self.restore()
            with self.phase("recover"):
                self.recover()
            with self.phase("migrate"):
                self.migrate()
            with self.phase("questions"):
                self.question()
            with self.phase("amcheck"):
                self.amcheck()
        finally:
            remove_scratch(self.own.bin)
        with self.phase("volumes"):
            self.volumes()

    def preflight(self) -> None:
        """Check that the repository has a backup and that the disk has space for it."""
        info = self.repository()
        complete = [backup for backup in info.get("backup", []) if not backup.get("error")]
        if not complete:
            raise FailedError(f"repo{self.repo} contains no backup")
        self.result.backup = complete[-1]["label"]
        size = int(self.live("SELECT sum(pg_database_size(oid))::bigint FROM pg_database", "postgres"))
        needed = int(size * SPACE_FACTOR) + self.own.margin_mb * 1024 * 1024
        free = shutil.disk_usage(SCRATCH.parent).free
        self.result.database_bytes, self.result.free_bytes, self.result.needed_bytes = size, free, needed
        if free < needed:
            raise FailedError(
                f"disk too small for a drill: {free >> 20} MB free below {SCRATCH.parent}, {needed >> 20} MB needed",
                EXIT_COULD_NOT_VERIFY,
            )
        self.result.rpo_seconds = self.achieved_rpo(info)

    def repository(self) -> dict[str, Any]:
        """Return `info` of the repository under test; one that can't be reached gives no verdict on the backups."""
        try:
            return repository(self.config.stanza, self.repo)
        except FailedError as error:
            if UNREACHABLE.search(str(error)):
                raise FailedError(f"repo{self.repo} cannot be reached: {error}", EXIT_COULD_NOT_VERIFY) from None
            raise

    def achieved_rpo(self, info: dict[str, Any]) -> float | None:
        """Return seconds since the last heartbeat in the repository: what would be lost if the machine died now."""
        if not info.get("archive"):
            return None
        end = segment_end(info["archive"][-1]["max"])
        newest = self.live(
            f"SELECT extract(epoch FROM clock_timestamp() - max(at)) FROM heartbeat WHERE lsn < '{end}'::pg_lsn"
        )
        return round(float(newest), 1) if newest else None

    def set_canaries(self) -> str:
        """Write a row before the target and one after it; return the name of the WAL segment that contains both."""
        self.live(f"INSERT INTO canary (drill, name) VALUES ('{self.id}', 'A')")
        time.sleep(1)
        # Milliseconds: pgBackRest reads a target no more exactly.
        moment = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')"
        self.result.target = self.live(f"SELECT {moment} || '+00'")
        time.sleep(1)
        self.live(f"INSERT INTO canary (drill, name) VALUES ('{self.id}', 'B'); INSERT INTO heartbeat DEFAULT VALUES")
        return self.live("SELECT pg_walfile_name(pg_switch_wal())", "postgres")

    def wait_for(self, segment: str) -> None:
        """Wait until a WAL segment is in the repository."""
        give_up_at = time.monotonic() + ARCHIVE_WAIT_S
        while True:
            archive = self.repository().get("archive") or [{"max": None}]
            newest = archive[-1]["max"] or ""
            if newest >= segment:
                return
            if time.monotonic() > give_up_at:
                raise FailedError(
                    f"WAL segment {segment} has not arrived in repo{self.repo} after {ARCHIVE_WAIT_S} s; the newest "
                    f"one there is {newest or 'none'}. `pgbackrest check` and PostgreSQL's log say why"
                )
            time.sleep(1)

    def restore(self) -> None:
        """Restore the backup, and the WAL up to the target, into a separate directory."""
        as_postgres(["install", "-d", "-m", "700", str(SCRATCH), f"{SCRATCH}/data"])
        live = configparser.ConfigParser(interpolation=None)
        live.read("/etc/pgbackrest/pgbackrest.conf")
        text = scratch_configuration(dict(live["global"]), self.config.stanza, self.repo)
        as_postgres(["sh", "-c", f"umask 077; cat > {SCRATCH}/pgbackrest.conf"], stdin=text)
        pgbackrest(
            f"--config={SCRATCH}/pgbackrest.conf",
            f"--stanza={self.config.stanza}",
            # Otherwise the scratch cluster would archive its timeline, and the next real restore would follow it.
            "--archive-mode=off",
            "--type=time",
            f"--target={self.result.target}",
            "--target-action=promote",
            "restore",
        )
        # pgBackRest has appended its settings to what the backup had.
        empty_auto_conf(SCRATCH / "data")

    def recover(self) -> None:
        """Start the scratch cluster and wait until it has reached the target and accepts writes."""
        control = control_data(f"{SCRATCH}/data", f"{self.own.bin}/pg_controldata")
        text = SCRATCH_POSTGRESQL.format(
            scratch=SCRATCH,
            address=self.own.address,
            port=self.own.port,
            stanza=self.config.stanza,
            target=self.result.target,
            ident_file=self.live("SHOW ident_file", "postgres"),
            prepared=control["max_prepared_xacts setting"],
        )
        as_postgres(["sh", "-c", f"cat > {SCRATCH}/postgresql.conf"], stdin=text)
        # Who may connect, and how, is as on the live server; besides, our own role checks the pages of every database.
        live_hba = Path(self.live("SHOW hba_file", "postgres")).read_text()
        as_postgres(["sh", "-c", f"cat > {SCRATCH}/pg_hba.conf"], stdin=SCRATCH_HBA + live_hba)
        argv = [f"{self.own.bin}/pg_ctl", "start", "-D", f"{SCRATCH}/data", "-l", f"{SCRATCH}/log", "-W", "-s"]
        argv += ["-o", f"-c config_file={SCRATCH}/postgresql.conf"]
        as_postgres(argv)
        started, running = time.monotonic(), False
        while not self._promoted():
            runs = _is_running()
            # On a busy machine it takes a moment until the server has written its pid file.
            ended = running and not runs
            running = running or runs
            waited = time.monotonic() - started
            if ended or waited > (RECOVERY_WAIT_S if running else START_WAIT_S):
                raise FailedError("the restored database does not recover: " + self._log_lines())
            time.sleep(0.3)

    def _promoted(self) -> bool:
        try:
            return self.scratch("SELECT pg_is_in_recovery()", "postgres") == "f"
        except FailedError:
            return False

    def _log_lines(self) -> str:
        lines = (SCRATCH / "log").read_text(errors="replace").splitlines() if (SCRATCH / "log").exists() else []
        errors = [line for line in lines if re.search(r"FATAL|PANIC|ERROR|could not", line)]
        return " | ".join((errors or lines)[-4:])

    def migrate(self) -> None:
        """Run the migrations of each service as a release would, and check that the live database stays as it is."""
        for service in self.own.services:
            missing = _why_not_migrated(service)
            if missing:
                self.not_exercised(f"{service.name}: migrations on the restored database", missing)
            else:
                self.migrate_service(service)

    def migrate_service(self, service: Service) -> None:
        """Run the migrations of one service. Raises FailedError unless they reached the restored database, and only it.

        They prove where they were: the scratch server logs who logs in, and the schema of the live database is compared
        before and after.
        """
        database = service.database or ""
        before, logins = self.live(SCHEMA, database), self._logins(service)
        what = f"{service.name}: migrations on the restored database"
        if not self._run_migration(service):
            self.not_exercised(what, "no release has left one")
            return
        self.check(
            f"{service.name}: the migration has left the live database as it was",
            self.live(SCHEMA, database) == before,
            "compared: the definitions of all its tables, columns, constraints, functions and types",
        )
        if self.result.checks[-1].outcome == "failed":
            raise FailedError(
                f"the live database {database} has another schema than before the migration of {service.name}: either "
                "a release migrated it at the same time, or the migration reached it. Compare both, then drill again"
            )
        if self._logins(service) == logins:
            raise FailedError(
                f"the migration of {service.name} has not logged in to the restored database as {service.owner}: "
                "nothing shows where it was",
                EXIT_COULD_NOT_VERIFY,
            )

    def _run_migration(self, service: Service) -> bool:
        limit_s = service.migration_limit_s or 0
        if self.own.runtime == "k3s":
            return migration_job.migrate_in_k3s(service.name, self.own.address, limit_s)
        return migration_job.migrate_with_podman(
            service.name, MANIFESTS / f"{service.name}.yaml", self.own.address, limit_s
        )

    def _logins(self, service: Service) -> int:
        """Return how often the owner role of a service has logged in to its restored database."""
        wanted = f"connection authorized: user={service.owner} database={service.database}"
        lines = (SCRATCH / "log").read_text(errors="replace").splitlines()
        return sum(wanted in line.split(" application_name=")[0] for line in lines)

    def not_exercised(self, what: str, why: str) -> None:
        """Record something that this drill could not try."""
        self.result.not_exercised.append(NotExercised(what, why))

    def question(self) -> None:
        """Check the canaries, then ask the questions of each service and count the rows of its data classes."""
        found = self.scratch(f"SELECT name FROM canary WHERE drill = '{self.id}' ORDER BY 1", "minipc").split()
        self.check("the canary before the target is there", "A" in found, f"found: {found}")
        self.check("the canary after the target is not there", "B" not in found, f"found: {found}")
        for service in self.own.services:
            if service.database is None:
                self.not_exercised(f"{service.name}: restored database", "the service has no database")
            else:
                self.question_service(service, service.database)
        self._demand_checks()

    def question_service(self, service: Service, database: str) -> None:
        """Ask the questions of a service, count the rows of its data classes, and name the tables that are in none."""
        if not service.queries:
            self.not_exercised(f"{service.name}: questions to the restored database", "it declares none (`drill`)")
        for query in service.queries:
            self.ask(service.name, database, query)
        if not service.classes:
            self.not_exercised(f"{service.name}: rows of the restored database", "it declares no data classes")
        for data_class in service.classes:
            rows, newest = self.count(service.name, database, data_class)
            self.result.classes.append(RowCount(data_class.name, rows, newest, service.name))
        others = self.unclassified(service, database)
        if others:
            self.not_exercised(f"{service.name}: tables in no data class", f"nothing is promised for {others}")

    def unclassified(self, service: Service, database: str) -> str:
        """Return the tables of a service that are in no data class. Their names are data of the service."""
        known = {sql_names.parts(table.name) for each in service.classes for table in each.tables}
        found = schema.loads(list[list[str]], self.scratch(sql_names.ALL_TABLES, database), f"tables of {database}")
        return sql_names.listed({(each[0], each[1]) for each in found} - known)

    def _demand_checks(self) -> None:
        failed = [check for check in self.result.checks if check.outcome == "failed"]
        if failed:
            raise FailedError("; ".join(f"{check.name}: {check.message}" for check in failed))

    def ask(self, service: str, database: str, query: Query) -> None:
        """Ask one question and check the answer."""
        sign, wanted = query.expect.split()
        name = f"{service}: {query.name}"
        try:
            answer = self.scratch(query.sql, database)
            passed = COMPARE[sign](int(answer), int(wanted))
            self.check(name, passed, f"the answer is {answer}, expected {query.expect}")
        except FailedError as error:
            self.check(name, False, str(error))
        except ValueError:
            self.check(name, False, f"the answer is {answer!r}, expected a number {query.expect}")

    def count(self, service: str, database: str, data_class: DataClass) -> tuple[int, float | None]:
        """Return the number of rows of a class and the time of the newest; a missing table is a failed check."""
        rows, newest = 0, []
        for table in data_class.tables:
            column = f"extract(epoch FROM max({sql_names.identifier(table.timestamp)}))" if table.timestamp else "NULL"
            try:
                answer = self.scratch(f"SELECT count(*), {column} FROM {sql_names.table(table.name)}", database)
                number, _, moment = answer.partition("|")
                rows += int(number)
                newest += [float(moment)] if moment else []
            except (FailedError, ValueError) as error:
                self.check(f"{service}: {data_class.name}: table {table.name}", False, str(error)[:300])
        return rows, max(newest, default=None)

    def volumes(self) -> None:
        """Compare each volume's newest snapshot with the manifest in it."""
        for service in self.own.services:
            if service.queue:
                self.queue(service.name, service.queue)
        for volume in self.config.volumes:
            if self.config.restic is None:
                self.not_exercised(f"{volume.key}: backup of the volume", "there is no off-site host")
                continue
            try:
                result = volume_drill.verify(self.config, volume)
            except FailedError as error:
                code = EXIT_COULD_NOT_VERIFY if UNREACHABLE.search(str(error)) else error.code
                raise FailedError(f"{volume.key}: {error}", code) from None
            self.result.volumes.append(result)
            self.check(f"{volume.key}: the files of the volume are in its backup", not result.problem, result.text)
        self._demand_checks()

    def queue(self, name: str, folder: str) -> None:
        """Load the newest copy of a queue into a scratch server."""
        what = f"{name}: backup of the Redis queue"
        if self.config.restic is None:
            self.not_exercised(what, "there is no off-site host")
            return
        try:
            found = queue_drill.count(self.config, folder)
        except FailedError as error:
            if UNREACHABLE.search(str(error)):
                raise FailedError(f"{what}: {error}", EXIT_COULD_NOT_VERIFY) from None
            self.check(f"{name}: Redis loads the queue from its backup", False, str(error))
            return
        if found is None:
            self.not_exercised(what, "it has no copy yet: nothing was ever stored in it")
        else:
            self.check(f"{name}: Redis loads the queue from its backup", True, f"{found[1]} keys, snapshot {found[0]}")

    def amcheck(self) -> None:
        """Check every table and index, page by page; not as superuser: an index may call a service's function."""
        connection = ["-h", str(SCRATCH), "-p", str(self.own.port)]
        databases = self.scratch("SELECT datname FROM pg_database WHERE datallowconn", "postgres").splitlines()
        options = {"PGOPTIONS": self.config.logins["postgres"].options}
        for database in databases:
            argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *connection, "-d", database]
            as_postgres(argv, 60, AMCHECK.format(database=database), options)
        try:
            as_postgres([f"{self.own.bin}/pg_amcheck", *connection, "-U", "minipc", "--all"])
        except FailedError as error:
            self.check("no table or index is damaged", False, str(error))
            raise
        self.check("no table or index is damaged", True, "")

    def conclude(self, code: int, reason: str) -> None:
        """Store the result and publish metrics."""
        self.result.ended, self.result.verdict, self.result.reason = time.time(), VERDICTS.get(code, "fail"), reason
        drill_results.store(self.result)
        say(f"drill of repo{self.repo}: {self.result.verdict.upper()} {reason}".rstrip())


# The definitions of everything in a database that a migration makes. Temporary objects come and go.
SCHEMA = """
WITH spaces AS (
    SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
), lines AS (
    SELECT format('schema %s', nspname) AS line FROM spaces
    UNION ALL SELECT format('%s.%s %s', nspname, relname, relkind)
        FROM pg_catalog.pg_class c JOIN spaces s ON s.oid = relnamespace
    UNION ALL SELECT format('%s.%s %s %s %s %s %s', nspname, relname, attnum, attname, atttypid, atttypmod, attnotnull)
        FROM pg_catalog.pg_attribute JOIN pg_catalog.pg_class c ON c.oid = attrelid
        JOIN spaces s ON s.oid = relnamespace WHERE attnum > 0
    UNION ALL SELECT format('%s.%s %s', nspname, conname, pg_catalog.pg_get_constraintdef(c.oid))
        FROM pg_catalog.pg_constraint c JOIN spaces s ON s.oid = connamespace
    UNION ALL SELECT format('%s.%s %s', nspname, p.oid, pg_catalog.md5(prosrc))
        FROM pg_catalog.pg_proc p JOIN spaces s ON s.oid = pronamespace
    UNION ALL SELECT format('%s.%s %s', nspname, typname, typtype)
        FROM pg_catalog.pg_type t JOIN spaces s ON s.oid = typnamespace
    UNION ALL SELECT format('%s %s', enumtypid, enumlabel) FROM pg_catalog.pg_enum
)
SELECT count(*), pg_catalog.md5(string_agg(line, E'\\n' ORDER BY line COLLATE "C")) FROM lines
"""
# Nothing here reads an object of a service.
AMCHECK = """\
CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA pg_catalog;
GRANT CONNECT ON DATABASE "{database}" TO minipc;
GRANT EXECUTE ON FUNCTION pg_catalog.verify_heapam(regclass, boolean, boolean, text, bigint, bigint) TO minipc;
GRANT EXECUTE ON FUNCTION pg_catalog.bt_index_check(regclass, boolean) TO minipc;
"""
SCRATCH_HBA = "local all minipc peer map=minipc\n"
SCRATCH_POSTGRESQL = """\
# A scratch cluster: removed after a few minutes, so it need not survive a crash.
data_directory = '{scratch}/data'
hba_file = '{scratch}/pg_hba.conf'
ident_file = '{ident_file}'
unix_socket_directories = '{scratch}'
listen_addresses = '{address}'
port = {port}
cluster_name = 'minipc-drill'
archive_mode = off
# Otherwise recovery demands max_connections and the like to be as high as they ever were since the backup, or pauses.
hot_standby = off
# A prepared transaction in the backup needs its place.
max_prepared_transactions = {prepared}
shared_buffers = 64MB
fsync = off
full_page_writes = off
autovacuum = off
allow_alter_system = off
event_triggers = off
log_line_prefix = '%m [%p] '
# By this the migrations prove that they were here.
log_connections = on
# What it recovers with is here: what came with the backup is emptied.
restore_command = 'pgbackrest --config={scratch}/pgbackrest.conf --stanza={stanza} archive-get %f "%p"'
recovery_target_time = '{target}'
recovery_target_action = promote
"""


def scratch_configuration(live: dict[str, str], stanza: str, repo: int) -> str:
    """Return pgBackRest's configuration for the scratch cluster.

    It has one repository, as repo1, and shares neither locks nor spool with the live cluster.
    """
    prefix = f"repo{repo}-"
    lines = [f"repo1-{key.removeprefix(prefix)}={value}" for key, value in live.items() if key.startswith(prefix)]
    return "\n".join(
        [
            "[global]",
            *lines,
            f"spool-path={SCRATCH}/spool",
            f"lock-path={SCRATCH}/lock",
            f"log-path={SCRATCH}",
            "log-level-console=warn",
            "log-level-file=off",
            f"process-max={live.get('process-max', '1')}",
            "archive-async=n",
            f"io-timeout={live.get('io-timeout', '60')}",
            f"[{stanza}]",
            f"pg1-path={SCRATCH}/data",
            "",
        ]
    )


def release() -> Code:
    """Return the commit that the machine was converged from."""
    return schema.load(Code, RELEASE, ignore_unknown=True) if RELEASE.exists() else Code()


def segment_end(segment: str) -> str:
    """Return the position just after a WAL segment, as PostgreSQL writes it.

    >>> segment_end("000000010000000000000005")
    '0/6000000'
    """
    log, number = int(segment[8:16], 16), int(segment[16:24], 16)
    position = (log << 32) + (number + 1) * SEGMENT_BYTES
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def _why_not_migrated(service: Service) -> str:
    """Return why a service has nothing to migrate; empty if it has."""
    if service.database is None:
        return "the service has no database"
    return "" if service.migration_limit_s else "it declares no migration (`migrate`)"


def remove_scratch(programs: str) -> None:
    """Stop and remove the scratch cluster, also one that a killed drill has left."""
    if _is_running():
        try:
            as_postgres([f"{programs}/pg_ctl", "stop", "-D", f"{SCRATCH}/data", "-m", "immediate", "-w", "-s"], 60)
        except FailedError as error:
            say(f"the scratch cluster was not running: {error}")
    if SCRATCH.exists():
        as_postgres(["rm", "-rf", "--", str(SCRATCH)])


def _is_running() -> bool:
    """Return whether the scratch cluster's server runs; after a power cut its pid may be another process's."""
    try:
        pid = int((SCRATCH / "data/postmaster.pid").read_text().split()[0])
        return f"{SCRATCH}/data".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return False


def main(arguments: list[str]) -> int:
    """Run a drill, store its result and return its verdict as exit code."""
    if arguments == ["publish"]:
        drill_results.publish()
        return EXIT_PASS
    config, own = settings(), schema.load(DrillSettings, DRILL_SETTINGS)
    signal.signal(signal.SIGTERM, _terminated)
    with locked(LOCK, "drill"), awake("drill"):
        return _drill(Drill(config, own, _repository(config, arguments)))


def _repository(config: Settings, arguments: list[str]) -> int:
    wanted = arguments[0] if arguments else "next"
    if wanted == "next":
        return drill_results.next_repository(config.repos)
    if wanted not in map(str, config.repos):
        raise FailedError(f"there is no repo{wanted}; there are: {config.repos}", EXIT_COULD_NOT_VERIFY)
    return int(wanted)


def _drill(drill: Drill) -> int:
    code, reason = EXIT_COULD_NOT_VERIFY, "interrupted"
    try:
        drill.run()
        code, reason = EXIT_PASS, ""
    except FailedError as error:
        code, reason = error.code, str(error)
    except Exception as error:
        traceback.print_exc()
        reason = repr(error)
    finally:
        drill.conclude(code, reason)
    return code


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_COULD_NOT_VERIFY)
