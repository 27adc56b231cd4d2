#!/usr/bin/python3
# Written by minipc (templates/backups/drill.py).
"""The restore drill: a backup becomes a running database beside the live one, is questioned, and is thrown away.

    drill [1|2]        which repository; without a number the one whose last drill is longest ago
    drill publish      only the metrics, from the results that are there

It goes back to a moment between two canaries: the first must be there, the second must not. The live stanza is only
read: the scratch cluster has a configuration of its own, with one repository and archiving off. Exit 0 pass, 1 fail,
4 could not verify.
"""

from __future__ import annotations

import configparser
import json
import operator
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from common import (
    EXIT_COULD_NOT_VERIFY,
    EXIT_FAIL,
    EXIT_PASS,
    FailedError,
    as_postgres,
    control_data,
    ended,
    locked,
    pgbackrest,
    read_json,
    repository,
    run,
    say,
    settings,
    sql,
    write_file,
    write_metrics,
)

DRILL_SETTINGS = Path("/etc/minipc/backups/drill.json")
RESULTS = Path("/var/lib/minipc/drills")
RELEASE = Path("/etc/minipc/release")
SCRATCH = Path("/var/lib/postgresql/minipc-drill")
SEGMENT_BYTES = 16 * 1024 * 1024
ROOM = 1.3  # of the database's size: what is restored, and the WAL that is replayed
ARCHIVE_WAIT_S = 120
RECOVERY_WAIT_S = 6 * 3600
START_WAIT_S = 60
MIGRATION_S = 600
JOB = "drill-migrate"
SERVER = {"node-role.kubernetes.io/control-plane": "true"}
VERDICTS = {EXIT_PASS: "pass", EXIT_FAIL: "fail", EXIT_COULD_NOT_VERIFY: "could-not-verify"}
COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
# What recovery insists on: at least what the backed-up server had (PostgreSQL manual, "Hot Standby").
MINIMUMS = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}
# pgBackRest's exit codes for a repository that can't be reached: connecting, protocol, and a stalled one.
UNREACHABLE = re.compile(r"unable to connect|timeout|timed out|refused|no route|unreachable|handshake", re.I)


class Drill:
    """One drill and what it has found so far."""

    def __init__(self, config: dict[str, Any], repo: int) -> None:
        self.config = config
        self.own = read_json(DRILL_SETTINGS)
        self.repo = repo
        self.id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        self.result: dict[str, Any] = {
            "id": self.id,
            "repo": repo,
            "started": time.time(),
            "phases": [],
            "checks": [],
            "classes": [],
            "not_exercised": [],
            "rpo_seconds": None,
            "backup": None,
            "target": None,
            "code": release(),
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A step with its times and verdict."""
        entry = {"name": name, "started": time.time(), "verdict": "pass", "detail": ""}
        self.result["phases"].append(entry)
        try:
            yield
        except FailedError as error:
            entry |= {"verdict": VERDICTS.get(error.code, "fail"), "detail": str(error)}
            raise
        except BaseException as error:
            entry |= {"verdict": "could-not-verify", "detail": repr(error)}
            raise
        finally:
            entry["ended"] = time.time()
            say(f"{name}: {entry['verdict']} {entry['ended'] - entry['started']:.1f} s {entry['detail']}".rstrip())

    def check(self, name: str, passed: bool, message: str) -> None:
        """An answer that was expected or not."""
        outcome = "passed" if passed else "failed"
        phase = self.result["phases"][-1]["name"]
        self.result["checks"].append({"phase": phase, "name": name, "outcome": outcome, "message": message})
        if not passed:
            say(f"FAILED: {name}: {message}")

    def live(self, statement: str, database: str = "minipc") -> str:
        """SQL on the live server."""
        return sql(statement, database, self.config["port"])

    def scratch(self, statement: str, database: str) -> str:
        """SQL on the scratch cluster."""
        return sql(statement, database, self.own["port"], str(SCRATCH))

    # --- the steps ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All steps. Raises FailedError with the first one that could not be done."""
        remove_scratch(self.own["bin"])
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
            remove_scratch(self.own["bin"])

    def preflight(self) -> None:
        """The repository answers and has a backup, and there is room for it."""
        info = self.repository()
        whole = [backup for backup in info.get("backup", []) if not backup.get("error")]
        if not whole:
            raise FailedError(f"repo{self.repo} holds no backup")
        self.result["backup"] = whole[-1]["label"]
        size = int(self.live("SELECT sum(pg_database_size(oid))::bigint FROM pg_database"))
        needed = int(size * ROOM) + self.own["margin_mb"] * 1024 * 1024
        free = shutil.disk_usage(SCRATCH.parent).free
        self.result |= {"database_bytes": size, "free_bytes": free, "needed_bytes": needed}
        if free < needed:
            raise FailedError(
                f"disk too small for a drill: {free >> 20} MB free below {SCRATCH.parent}, {needed >> 20} MB needed",
                EXIT_COULD_NOT_VERIFY,
            )
        self.result["rpo_seconds"] = self.achieved_rpo(info)

    def repository(self) -> dict[str, Any]:
        """`info` of the repository under test; one that can't be reached is no verdict on the backups."""
        try:
            return repository(self.config["stanza"], self.repo)
        except FailedError as error:
            if UNREACHABLE.search(str(error)):
                raise FailedError(f"repo{self.repo} can't be reached: {error}", EXIT_COULD_NOT_VERIFY) from None
            raise

    def achieved_rpo(self, info: dict[str, Any]) -> float | None:
        """Seconds since the last heartbeat that is in the repository: what would be lost if the machine died now."""
        if not info.get("archive"):
            return None
        end = segment_end(info["archive"][-1]["max"])
        newest = self.live(
            f"SELECT extract(epoch FROM clock_timestamp() - max(at)) FROM heartbeat WHERE lsn < '{end}'::pg_lsn"
        )
        return round(float(newest), 1) if newest else None

    def set_canaries(self) -> str:
        """One row before the target, one after it, and the end of the segment that holds both; returns its name."""
        self.live(f"INSERT INTO canary (drill, name) VALUES ('{self.id}', 'A')")
        time.sleep(1)
        # Milliseconds: that is as exact as pgBackRest reads a target.
        moment = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')"
        self.result["target"] = self.live(f"SELECT {moment} || '+00'")
        time.sleep(1)
        self.live(f"INSERT INTO canary (drill, name) VALUES ('{self.id}', 'B'); INSERT INTO heartbeat DEFAULT VALUES")
        return self.live("SELECT pg_walfile_name(pg_switch_wal())")

    def wait_for(self, segment: str) -> None:
        """The segment is in the repository."""
        give_up_at = time.monotonic() + ARCHIVE_WAIT_S
        while True:
            archive = self.repository().get("archive") or [{"max": None}]
            newest = archive[-1]["max"] or ""
            if newest >= segment:
                return
            if time.monotonic() > give_up_at:
                raise FailedError(
                    f"WAL segment {segment} has not arrived in repo{self.repo} after {ARCHIVE_WAIT_S} s; the newest "
                    f"one there is {newest or 'none'}. pgBackRest's check and PostgreSQL's log say why"
                )
            time.sleep(1)

    def restore(self) -> None:
        """The backup and what leads to the target, into a directory of its own."""
        as_postgres(["install", "-d", "-m", "700", str(SCRATCH), f"{SCRATCH}/data"])
        live = configparser.ConfigParser(interpolation=None)
        live.read("/etc/pgbackrest/pgbackrest.conf")
        text = scratch_configuration(dict(live["global"]), self.config["stanza"], self.repo)
        as_postgres(["sh", "-c", f"umask 077; cat > {SCRATCH}/pgbackrest.conf"], stdin=text)
        pgbackrest(
            f"--config={SCRATCH}/pgbackrest.conf",
            f"--stanza={self.config['stanza']}",
            # Or the scratch cluster would push its timeline into the stanza, and the next real restore follow it.
            "--archive-mode=off",
            "--type=time",
            f"--target={self.result['target']}",
            "--target-action=promote",
            "restore",
        )

    def recover(self) -> None:
        """Starts the scratch cluster and waits until it has reached the target and takes writes."""
        control = control_data(f"{SCRATCH}/data", f"{self.own['bin']}/pg_controldata")
        lines = [f"{name} = {control[key]}" for key, name in MINIMUMS.items()]
        values = {"scratch": SCRATCH, "address": self.own["address"], "port": self.own["port"]}
        # Who may come in, and how, is as on the live server.
        text = SCRATCH_POSTGRESQL.format(**values, hba_file=self.live("SHOW hba_file")) + "\n".join(lines) + "\n"
        as_postgres(["sh", "-c", f"cat > {SCRATCH}/postgresql.conf"], stdin=text)
        as_postgres(["sh", "-c", f": > {SCRATCH}/pg_ident.conf"])
        argv = [f"{self.own['bin']}/pg_ctl", "start", "-D", f"{SCRATCH}/data", "-l", f"{SCRATCH}/log", "-W", "-s"]
        argv += ["-o", f"-c config_file={SCRATCH}/postgresql.conf"]
        as_postgres(argv)
        started, running = time.monotonic(), False
        while not self._promoted():
            there = (SCRATCH / "data/postmaster.pid").exists()
            # On a busy machine it takes the server a moment to write the file that it is known by.
            ended = running and not there
            running = running or there
            waited = time.monotonic() - started
            if ended or waited > (RECOVERY_WAIT_S if running else START_WAIT_S):
                raise FailedError("the restored database does not recover: " + self._telling_lines())
            time.sleep(0.3)

    def _promoted(self) -> bool:
        try:
            return self.scratch("SELECT pg_is_in_recovery()", "postgres") == "f"
        except FailedError:
            return False

    def _telling_lines(self) -> str:
        lines = (SCRATCH / "log").read_text(errors="replace").splitlines() if (SCRATCH / "log").exists() else []
        telling = [line for line in lines if re.search(r"FATAL|PANIC|ERROR|could not", line)]
        return " | ".join((telling or lines)[-4:])

    def migrate(self) -> None:
        """The service's own migrations, as a release would run them."""
        migration = self.own["migrate"]
        if "job" in migration:
            self.migrate_in_the_cluster(migration["job"], migration["environment"])
            return
        environment = environment_file(Path(migration["environment_file"])) | migration["environment"]
        user = migration["user"]
        run(
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", *migration["argv"]],
            MIGRATION_S,
            env=environment,
        )

    def migrate_in_the_cluster(self, released: str, environment: dict[str, str]) -> None:
        """The job of the release that runs, once more, with the scratch cluster as its database.

        Args:
            released: name of that job.
            environment: what is different for this one.
        """
        found = kubectl("get", "job", released, "--output=json", "--ignore-not-found")
        if not found:
            self.result["not_exercised"].append(
                {"what": "migrations on the restored database", "why": f"no release has left a job {released}"}
            )
            return
        job = json.loads(found)
        remove_job()
        try:
            kubectl("create", "--filename=-", stdin=json.dumps(drill_job(job, environment)))
            wait_for_job()
        finally:
            remove_job()

    def question(self) -> None:
        """Canaries, then what the data must answer, class by class."""
        found = self.scratch(f"SELECT name FROM canary WHERE drill = '{self.id}' ORDER BY 1", "minipc").split()
        self.check("the canary before the target is there", "A" in found, f"found: {found}")
        self.check("the canary after the target is not there", "B" not in found, f"found: {found}")
        for query in self.own["queries"]:
            self.ask(query)
        for data_class in self.own["classes"]:
            rows, newest = self.count(data_class)
            self.result["classes"].append({"name": data_class["name"], "rows": rows, "newest": newest})
        failed = [check for check in self.result["checks"] if check["outcome"] == "failed"]
        if failed:
            raise FailedError("; ".join(f"{check['name']}: {check['message']}" for check in failed))

    def ask(self, query: dict[str, Any]) -> None:
        """One question from the settings."""
        sign, wanted = query["expect"].split()
        try:
            answer = self.scratch(query["sql"], query["database"])
            passed = COMPARE[sign](int(answer), int(wanted))
            self.check(query["name"], passed, f"the answer is {answer}, expected {query['expect']}")
        except FailedError as error:
            self.check(query["name"], False, str(error))
        except ValueError:
            self.check(query["name"], False, f"the answer is {answer!r}, expected a number {query['expect']}")

    def count(self, data_class: dict[str, Any]) -> tuple[int, float | None]:
        """Rows of a class, and the moment of the newest one; a table that is missing is a failed check."""
        rows, newest = 0, []
        for table in data_class["tables"]:
            column = f"extract(epoch FROM max({table['timestamp']}))" if table["timestamp"] else "NULL"
            try:
                answer = self.scratch(f"SELECT count(*), {column} FROM {table['name']}", data_class["database"])
            except FailedError as error:
                self.check(f"{data_class['name']}: table {table['name']}", False, str(error))
                continue
            number, _, moment = answer.partition("|")
            rows += int(number)
            newest += [float(moment)] if moment else []
        return rows, max(newest, default=None)

    def amcheck(self) -> None:
        """Every table and index, page by page."""
        connection = ["-h", str(SCRATCH), "-p", str(self.own["port"])]
        try:
            as_postgres([f"{self.own['bin']}/pg_amcheck", *connection, "--all", "--install-missing"])
        except FailedError as error:
            self.check("no table or index is damaged", False, str(error))
            raise
        self.check("no table or index is damaged", True, "")

    # --- the end --------------------------------------------------------------------------------------------------

    def conclude(self, code: int, reason: str) -> None:
        """Writes result and metrics."""
        self.result |= {"ended": time.time(), "verdict": VERDICTS.get(code, "fail"), "reason": reason}
        write_file(RESULTS / f"{self.id}-repo{self.repo}.json", json.dumps(self.result, indent=1) + "\n")
        write_file(RESULTS / "last.json", json.dumps(self.result, indent=1) + "\n")
        publish()
        say(f"drill of repo{self.repo}: {self.result['verdict'].upper()} {reason}".rstrip())


SCRATCH_POSTGRESQL = """\
# A scratch cluster: gone in a few minutes, so nothing has to survive a crash of it.
data_directory = '{scratch}/data'
hba_file = '{hba_file}'
ident_file = '{scratch}/pg_ident.conf'
unix_socket_directories = '{scratch}'
listen_addresses = '{address}'
port = {port}
cluster_name = 'minipc-drill'
archive_mode = off
shared_buffers = 64MB
fsync = off
full_page_writes = off
autovacuum = off
log_line_prefix = '%m [%p] '
"""


def scratch_configuration(live: dict[str, str], stanza: str, repo: int) -> str:
    """pgBackRest's configuration for the scratch cluster: one repository, which becomes its repo1, and nothing shared
    with the live cluster, neither locks nor spool."""
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


def release() -> dict[str, Any]:
    """Which commit the machine was converged from, for the record."""
    found = read_json(RELEASE)
    return {"commit": found.get("commit", "unknown"), "dirty": bool(found.get("dirty"))}


def segment_end(segment: str) -> str:
    """The position just after a WAL segment, as PostgreSQL writes it.

    >>> segment_end("000000010000000000000005")
    '0/6000000'
    """
    log, number = int(segment[8:16], 16), int(segment[16:24], 16)
    position = (log << 32) + (number + 1) * SEGMENT_BYTES
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def environment_file(path: Path) -> dict[str, str]:
    """The variables of a systemd EnvironmentFile, as templates/workload/env.j2 writes it."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


def kubectl(*words: str, stdin: str = "") -> str:
    """Asks the cluster, in the service's namespace. Raises FailedError: it tells nothing about the backup."""
    argv = ["k3s", "kubectl", "--namespace=workload", "--request-timeout=20s", *words]
    try:
        return run(argv, 60, stdin, {"HOME": "/tmp"})  # noqa: S108 - the unit's own; what kubectl learnt is kept there
    except FailedError as error:
        raise FailedError(f"the cluster could not be asked: {error}", EXIT_COULD_NOT_VERIFY) from None


def drill_job(released: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """A copy of a release's job that is nobody's: neither ArgoCD's nor the first job's.

    Args:
        released: the job as the cluster has it.
        environment: variables that are added, or have another value.

    Raises:
        FailedError: a container takes its database from elsewhere: it would change the living one.
    """
    pod = released["spec"]["template"]
    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        if "DATABASE_HOST" not in {each["name"] for each in container.get("env", [])}:
            raise FailedError(
                f"the release's migration takes its database from elsewhere than DATABASE_HOST ({container['name']}): "
                "it would not change the restored one",
                EXIT_COULD_NOT_VERIFY,
            )
        kept = [each for each in container.get("env", []) if each["name"] not in environment]
        container["env"] = kept + [{"name": name, "value": value} for name, value in environment.items()]
    # Those that the first job's controller has put there would make it take these pods for its own.
    owned = re.compile(r"^(batch\.kubernetes\.io/.*|controller-uid|job-name)$")
    metadata = {
        "labels": {key: value for key, value in pod["metadata"].get("labels", {}).items() if not owned.match(key)},
        "annotations": pod["metadata"].get("annotations", {}),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": JOB},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": MIGRATION_S,
            # Here: an agent may go at any moment, and its pods would never be over.
            "template": {"metadata": metadata, "spec": pod["spec"] | {"nodeSelector": SERVER}},
        },
    }


def wait_for_job() -> None:
    """Until the drill's job has succeeded. Raises FailedError with what it said."""
    give_up_at = time.monotonic() + MIGRATION_S + 60
    while time.monotonic() < give_up_at:
        status = json.loads(kubectl("get", "job", JOB, "--output=json")).get("status", {})
        if status.get("succeeded"):
            return
        true = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
        if true & {"Failed", "FailureTarget"}:
            raise FailedError(f"the migrations failed: {' | '.join(_last_words())}")
        time.sleep(0.5)
    raise FailedError(f"the job {JOB} has not ended after {MIGRATION_S + 60} s", EXIT_COULD_NOT_VERIFY)


def _last_words() -> list[str]:
    try:
        return kubectl("logs", f"job/{JOB}", "--tail=4").splitlines()
    except FailedError as error:
        return [str(error)]


def remove_job() -> None:
    """The drill's job and its pods, also those that a killed drill has left."""
    kubectl("delete", "job", JOB, "--ignore-not-found", "--cascade=foreground", "--timeout=40s")


def remove_scratch(programs: str) -> None:
    """Stops and removes the scratch cluster, also one that a killed drill has left."""
    if _is_running():
        try:
            as_postgres([f"{programs}/pg_ctl", "stop", "-D", f"{SCRATCH}/data", "-m", "immediate", "-w", "-s"], 60)
        except FailedError as error:
            say(f"the scratch cluster was not running: {error}")
    if SCRATCH.exists():
        as_postgres(["rm", "-rf", "--", str(SCRATCH)])


def _is_running() -> bool:
    """Whether the scratch cluster's own server runs: after a power cut its number may be another's."""
    try:
        pid = int((SCRATCH / "data/postmaster.pid").read_text().split()[0])
        return f"{SCRATCH}/data".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return False


def publish() -> None:
    """Metrics of the last drill of each repository."""
    last: dict[str, dict[str, Any]] = {}
    passed: dict[str, float] = {}
    for path in sorted(RESULTS.glob("[0-9]*-repo*.json")):
        try:
            result = read_json(path)
        except ValueError:
            say(f"{path} is no result: a power cut or a half restored copy? Left out")
            continue
        last[f"repo{result['repo']}"] = result
        if result["verdict"] == "pass":
            passed[f"repo{result['repo']}"] = result["ended"]
    write_metrics(
        "minipc_drill",
        {
            "minipc_drill_verdict": (
                "1 for the verdict of the last restore drill.",
                [
                    ({"repo": repo, "verdict": verdict}, result["verdict"] == verdict)
                    for repo, result in last.items()
                    for verdict in VERDICTS.values()
                ],
            ),
            "minipc_drill_last_run_timestamp_seconds": (
                "When the last restore drill ended.",
                [({"repo": repo}, result["ended"]) for repo, result in last.items()],
            ),
            "minipc_drill_last_pass_timestamp_seconds": (
                "When a restore drill last passed.",
                [({"repo": repo}, moment) for repo, moment in passed.items()],
            ),
            "minipc_drill_duration_seconds": (
                "How long the last restore drill took.",
                [({"repo": repo}, result["ended"] - result["started"]) for repo, result in last.items()],
            ),
            "minipc_drill_rpo_seconds": (
                "What would have been lost when the last restore drill began.",
                [
                    ({"repo": repo}, result["rpo_seconds"])
                    for repo, result in last.items()
                    if result["rpo_seconds"] is not None
                ],
            ),
        },
    )


def next_repository(repos: list[int]) -> int:
    """The repository whose last drill is longest ago."""
    last = dict.fromkeys(repos, "")
    for path in RESULTS.glob("[0-9]*-repo*.json"):
        repo = int(path.stem.rpartition("repo")[2])
        if repo in last:
            last[repo] = max(last[repo], path.name)
    return min(repos, key=lambda repo: last[repo])


def main(arguments: list[str]) -> int:
    if arguments == ["publish"]:
        publish()
        return EXIT_PASS
    config = settings()
    signal.signal(signal.SIGTERM, _terminated)
    with locked("drill", 0):
        repo = int(arguments[0]) if arguments and arguments[0] != "next" else next_repository(config["repos"])
        if repo not in config["repos"]:
            raise FailedError(f"there is no repo{repo}; there are: {config['repos']}", EXIT_COULD_NOT_VERIFY)
        drill = Drill(config, repo)
        code, reason = EXIT_COULD_NOT_VERIFY, "interrupted"
        try:
            drill.run()
            code, reason = EXIT_PASS, ""
        except FailedError as error:
            code, reason = error.code, str(error)
        except Exception as error:
            traceback.print_exc()
            code, reason = EXIT_COULD_NOT_VERIFY, repr(error)
        finally:
            drill.conclude(code, reason)
    return code


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_COULD_NOT_VERIFY)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FailedError as error:
        sys.exit(ended(error))
