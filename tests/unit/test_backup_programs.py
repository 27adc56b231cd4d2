"""The programs that run on the machine: what can be known without one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from minipc import config
from minipc.config.services import read
from minipc.core.paths import ROOT
from minipc.remote import psql
from minipc_machine import (
    backup,
    backup_state,
    clock,
    drill,
    drill_results,
    locks,
    metrics,
    migration_job,
    processes,
    repositories,
    restore,
    restore_state,
    schema,
    sql_names,
    stanza,
)
from minipc_machine.backup_state import Restore
from minipc_machine.drill import DataClass, DrillSettings, Query, Table
from minipc_machine.metrics import Gauge
from minipc_machine.processes import CommandError
from minipc_machine.program import EXIT_COULD_NOT_VERIFY, FailedError
from minipc_machine.repositories import ResticSettings
from minipc_machine.volume_files import Volume


@pytest.fixture(autouse=True)
def textfiles(monkeypatch, tmp_path):
    """The folder of the node exporter, in a place of the test's own."""
    monkeypatch.setattr(metrics, "TEXTFILES", tmp_path / "textfiles")
    return tmp_path / "textfiles"


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The folder of the drill's results."""
    monkeypatch.setattr(drill_results, "RESULTS", tmp_path / "drills")
    drill_results.RESULTS.mkdir()
    return drill_results.RESULTS


@pytest.fixture(autouse=True)
def outcomes(monkeypatch, tmp_path):
    """The file with the outcomes of backups."""
    monkeypatch.setattr(backup, "OUTCOMES", tmp_path / "state/outcomes.json")


@pytest.fixture(autouse=True)
def container(monkeypatch, tmp_path):
    """The controller may have no time server."""
    monkeypatch.setattr(clock, "CONTAINER", tmp_path)


def published(name):
    """The samples of a file of metrics, without its comments."""
    lines = (metrics.TEXTFILES / f"{name}.prom").read_text().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def settings_of(**changed):
    values = {"stanza": "main", "host": "minipc", "port": 5432, "repos": [1, 2], "logins": {}}
    return repositories.Settings(**values | {"processes": 1, "paths": [], "restic": None} | changed)


CONFIG = settings_of()


# --- common ---------------------------------------------------------------------------------------------------------


def test_metrics_are_escaped_and_replaced_as_a_whole(textfiles):
    metrics.write_metrics("m", [Gauge("a", "Help.", [({"path": 'x"\\y\n'}, 1.5)])])
    metrics.write_metrics("m", [Gauge("b", "Help.", [({}, True), ({"repo": "repo1"}, 1795257108.123)])])
    text = (textfiles / "m.prom").read_text()
    assert text == '# HELP b Help.\n# TYPE b gauge\nb 1\nb{repo="repo1"} 1795257108\n'
    assert [path.name for path in textfiles.iterdir()] == ["m.prom"]


def test_a_label_keeps_its_meaning(textfiles):
    metrics.write_metrics("m", [Gauge("a", "Help.", [({"path": 'x"\\y\n'}, 1)])])
    assert 'a{path="x\\"\\\\y\\n"} 1' in (textfiles / "m.prom").read_text()


def test_a_failure_tells_the_command_without_its_options():
    with pytest.raises(CommandError, match=r"^sh .* ended with 3: told$") as error:
        processes.run(["sh", "-c", "echo told >&2; exit 3"])
    assert error.value.returncode == 3
    assert processes._short(["setpriv", "--x", "--", "pgbackrest", "--stanza=main", "backup"]) == "pgbackrest backup"
    assert processes._short(["restic", "--password-file", "p"]) == "restic p"


def test_what_a_service_says_is_no_command_for_a_terminal():
    """Its migrations, and the errors of its functions, get into the journal and onto the operator's screen."""
    said = "import sys; sys.exit('\\x1b]0;owned\\x07\\x1b[2Jnothing is wrong' + 'x' * 9999)"
    with pytest.raises(FailedError) as error:
        processes.run([sys.executable, "-c", said])
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_only_one_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with locks.locked(path, "drill"):
        with pytest.raises(FailedError, match="another drill is running") as error, locks.locked(path, "drill"):
            pass
        assert error.value.code == EXIT_COULD_NOT_VERIFY
    with locks.locked(path, "drill"):
        pass


@pytest.mark.parametrize(("code", "refused"), [(0, False), (1, False), (2, False), (6, True), (99, True)])
def test_a_repository_that_cannot_be_read_is_not_an_empty_one(monkeypatch, code, refused):
    info = [{"repo": [{"key": 2, "status": {"code": code, "message": "told"}}], "backup": [], "db": []}]
    monkeypatch.setattr(repositories, "pgbackrest", lambda *arguments, **options: json.dumps(info))
    if refused:
        with pytest.raises(FailedError, match="repo2 can't be read: told"):
            repositories.repository("main", 2)
    else:
        assert repositories.repository("main", 2)["backup"] == []


def test_a_wrong_passphrase_is_called_one():
    told = repositories._unreadable(
        1, "[FormatError] unable to load info file 'x':\nFormatError: at line 1: \x00\ufffd"
    )
    assert told == (
        "repo1 can't be decrypted: the passphrase is wrong or the repository is damaged: "
        "[FormatError] unable to load info file 'x':"
    )


# --- backup ---------------------------------------------------------------------------------------------------------


def test_a_failed_backup_keeps_the_time_of_the_last_good_one(capsys):
    config = settings_of(paths=[("host", "/etc"), ("edge", "/nonexistent")])
    assert backup.attempt(config, "repo1", lambda: backup.Taken("L", 10))
    first = backup._outcomes()["repo1"].last_success

    def fails():
        raise FailedError("disk full")

    assert not backup.attempt(config, "repo1", fails)
    assert backup.attempt(config, "repo2", lambda: backup.Taken("L", 20))
    seen = published("minipc_backups")
    assert seen['minipc_backup_success{repo="repo1"}'] == 0
    assert seen['minipc_backup_success{repo="repo2"}'] == 1
    assert seen['minipc_backup_last_success_timestamp_seconds{repo="repo1"}'] == pytest.approx(first, abs=1)
    assert seen['minipc_backup_size_bytes{repo="repo2"}'] == 20
    assert seen['minipc_backup_path_present{component="edge",path="/nonexistent"}'] == 0
    assert seen['minipc_backup_path_present{component="host",path="/etc"}'] == 1
    assert "repo1: FAILED: disk full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "success"),
    [
        (SystemExit(1), False),
        (CommandError("pgbackrest backup ended with 63: terminated on signal [SIGTERM]", 63), False),
        # A power cut: only what was written before the backup is known.
        (None, True),
    ],
)
def test_an_interrupted_full_backup_is_repeated(monkeypatch, capsys, how, success):
    """It was recorded as a success, and nobody repeated it for six days."""
    config = settings_of(repos=[1])
    assert backup.attempt(config, "repo1", lambda: backup.Taken("F", 1), full=True)
    seen = []

    def cut(*_):
        seen.append(backup.OUTCOMES.read_text())
        raise how or KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(backup, "database", cut)
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            assert backup._take(config, "full") == [False]
    if how is None:
        backup.OUTCOMES.write_text(seen[0])
    assert backup._outcomes()["repo1"].success == success
    if how is not None:
        assert published("minipc_backups")['minipc_backup_success{repo="repo1"}'] == 0
    monkeypatch.setattr(backup, "database", lambda config, repo, kind: backup.Taken(kind, 1))
    assert backup._take(config, "unfinished") == [True]
    assert backup._outcomes()["repo1"].label == "full"
    assert "repo1: the last full backup was interrupted; it is repeated" in capsys.readouterr().out
    assert backup._take(config, "diff") == [True]
    assert backup._outcomes()["repo1"].label == "diff"
    # Nothing is left to repeat.
    assert backup._take(config, "unfinished") == [True]
    assert backup._outcomes()["repo1"].label == "diff"


def test_a_shutdown_ends_a_backup_as_a_failure():
    with pytest.raises(SystemExit):
        backup._terminated(15, None)


@pytest.mark.parametrize("there", [True, False])
def test_the_machine_is_kept_from_shutting_down(monkeypatch, tmp_path, capsys, there):
    """The refusal ends with the program that asked for it."""
    if there:
        tool = tmp_path / "systemd-inhibit"
        tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat\necho > {tmp_path}/ended\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if there else str(tmp_path))
    with locks.awake("backup"):
        assert not (tmp_path / "ended").exists()
    assert (tmp_path / "ended").exists() == there
    assert ("a reboot can interrupt this" in capsys.readouterr().out) != there
    if there:
        assert (tmp_path / "asked").read_text().startswith("--what=shutdown:sleep --mode=block --who=minipc")


def test_a_backup_that_never_succeeded_has_no_time_of_success():
    def fails():
        raise FailedError("unreachable")

    backup.attempt(CONFIG, "repo2", fails)
    assert not [name for name in published("minipc_backups") if "last_success" in name]


def stored(days_ago, **changed):
    stop = {"timestamp": {"stop": time.time() - days_ago * 86400}}
    return stop | {"label": "L", "error": False, "info": {"repository": {"delta": 1}}} | changed


@pytest.mark.parametrize(
    ("days_ago", "synchronised", "why"),
    [
        ([8, 1], True, ""),
        ([], True, ""),
        ([401, 400], True, "400 days: has the clock jumped"),
        # The second backup after a jump.
        ([401, 1], True, "400 days: has the clock jumped"),
        # A machine that was off, and is in service again.
        ([60, 15, 8, 1], True, ""),
        ([1, -30], True, "in the future"),
        ([1], False, "not synchronised"),
    ],
)
def test_a_doubtful_clock_stops_expiry_and_not_the_backup(monkeypatch, capsys, days_ago, synchronised, why):
    """A clock 400 days ahead removed two of three full backups."""
    commands = []
    monkeypatch.setattr(clock, "SETTLED_S", 0)
    monkeypatch.setattr(clock, "synchronised", lambda: synchronised)
    monkeypatch.setattr(backup, "pgbackrest", lambda *arguments: commands.append(arguments))
    answers = iter([{"backup": [stored(each) for each in days_ago]}, {"backup": [stored(0)]}])
    monkeypatch.setattr(backup, "repository", lambda *_: next(answers))
    assert backup.database(CONFIG, 1, "full").label == "L"
    (command,) = commands
    assert ("--no-expire-auto" in command) == bool(why)
    assert why in capsys.readouterr().out
    assert published("minipc_expiry_repo1") == {'minipc_backup_expiry_stopped{repo="repo1"}': bool(why)}


@pytest.mark.parametrize(("said", "expected"), [("yes\n", True), ("no\n", False), (None, False)])
def test_an_unknown_clock_is_not_synchronised(monkeypatch, tmp_path, said, expected):
    def run(*_):
        if said is None:
            raise FailedError("timedatectl cannot be started")
        return said

    monkeypatch.setattr(clock, "CONTAINER", tmp_path / "container")
    monkeypatch.setattr(clock, "run", run)
    assert clock.synchronised() == expected
    clock.CONTAINER.touch()
    assert clock.synchronised()


def test_a_backup_of_damaged_pages_is_no_success(monkeypatch):
    """pgBackRest ends with 0."""
    newest = stored(0, label="20261127-020000F", error=True)
    monkeypatch.setattr(backup, "pgbackrest", lambda *_: "")
    monkeypatch.setattr(backup, "repository", lambda *_: {"backup": [newest]})
    with pytest.raises(FailedError, match="20261127-020000F in repo1 contains damaged pages"):
        backup.database(CONFIG, 1, "full")
    newest["error"] = False
    assert backup.database(CONFIG, 1, "full").label == "20261127-020000F"


def test_one_repository_that_fails_does_not_keep_the_next_from_being_tried(monkeypatch):
    def database(config, repo, kind):
        if repo == 1:
            raise FailedError("disk full")
        return backup.Taken(kind, 1)

    monkeypatch.setattr(backup, "database", database)
    assert backup._take(CONFIG, "diff") == [False, True]


def test_the_outcome_of_a_volume_that_is_gone_is_forgotten():
    """Or an alert would say for ever that its backup is old."""
    volume = Volume("gone", "uploads", 1000, 1, [], "must recover")
    assert backup.attempt(settings_of(volumes=[volume]), volume.tag, lambda: backup.Taken("L", 10))
    assert backup.attempt(CONFIG, "repo1", lambda: backup.Taken("L", 10))
    assert list(backup._outcomes()) == ["repo1"]
    assert "gone" not in (metrics.TEXTFILES / "minipc_backups.prom").read_text()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("files", ["restic", "volume:odd/uploads"]), ("state", ["restic"]), ("volumes", ["volume:odd/uploads"])],
)
def test_state_and_volumes_are_backed_up_together_or_one_of_them(monkeypatch, kind, parts):
    volume = Volume("odd", "uploads", 1000, 1, [], "must recover")
    config = settings_of(restic=ResticSettings("", "", ""), volumes=[volume])
    monkeypatch.setattr(backup, "files", lambda _: backup.Taken("1", 1))
    monkeypatch.setattr(backup, "volume", lambda *_: backup.Taken("1", 1))
    assert backup._take(config, kind) == [True] * len(parts)
    assert list(backup._outcomes()) == parts


# --- drill ----------------------------------------------------------------------------------------------------------


def test_a_result_that_a_power_cut_has_torn_hides_no_other(results):
    (results / "20261101-000000-repo1.json").write_text('{"repo": 1, "ver')
    good = {"repo": 2, "verdict": "pass", "started": 1.0, "ended": 2.0, "rpo_seconds": 3.0}
    (results / "20261102-000000-repo2.json").write_text(json.dumps(good))
    drill_results.publish()
    assert published("minipc_drill")['minipc_drill_duration_seconds{repo="repo2"}'] == 1


@pytest.mark.parametrize(
    ("segment", "end"),
    [
        ("000000010000000000000005", "0/6000000"),
        ("0000000100000000000000FF", "1/0"),
        ("0000000A00000002000000FE", "2/FF000000"),
    ],
)
def test_the_end_of_a_segment(segment, end):
    assert drill.segment_end(segment) == end


SECRETS = migration_job.Secrets("odd-migrate", "odd-drill")


def released(**changed):
    """The suspended CronJob of a release."""
    container = {
        "name": "migrate",
        "image": "odd:a1",
        "args": ["migrate"],
        "env": [
            {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "odd-migrate", "key": "DATABASE_URL"}}},
            {"name": "VERSION", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['a']"}}},
            {"name": "LOG_LEVEL", "value": "info"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            {"name": "secrets", "secret": {"secretName": "odd-migrate"}},
            {"name": "data-uploads", "persistentVolumeClaim": {"claimName": "uploads"}},
            {"name": "host", "hostPath": {"path": "/srv/minipc/volumes/odd/uploads"}},
            {"name": "writable-0", "emptyDir": {}},
        ],
    }
    template = {
        "metadata": {
            "labels": {"app.kubernetes.io/component": "migrate", "app.kubernetes.io/part-of": "odd"},
            "annotations": {"org.opencontainers.image.revision": "a1"},
        },
        "spec": pod | changed,
    }
    metadata = {"name": "migrate", "annotations": {"argocd.argoproj.io/tracking-id": "odd"}}
    return {"metadata": metadata, "spec": {"jobTemplate": {"spec": {"template": template}}}}


def test_the_job_of_a_drill_is_the_releases_with_another_database():
    job = migration_job.job("odd", released(), "10.88.0.1", 600)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["image"], container["args"]) == ("odd:a1", ["migrate"])
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "odd-drill", "key": "DATABASE_URL"}
    assert "odd-migrate" not in json.dumps(job)
    # A migration that changes files must not change those of the running service.
    assert pod["volumes"][1:] == [{"name": name, "emptyDir": {}} for name in ("data-uploads", "host", "writable-0")]
    assert job["spec"]["template"]["metadata"] == {
        "labels": {"app.kubernetes.io/component": "drill", "app.kubernetes.io/part-of": "odd"},
        "annotations": {"org.opencontainers.image.revision": "a1"},
    }
    assert job["metadata"] == {"name": "drill-migrate"}, "ArgoCD would take it for its own"
    assert "selector" not in job["spec"]


def with_variable(**variable):
    return {"containers": [{"name": "c", "env": [variable]}]}


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (with_variable(name="DATABASE_HOST", value="db.internal"), "the variable DATABASE_HOST"),
        (with_variable(name="PGHOST", value="/run/postgresql"), "the variable PGHOST"),
        (with_variable(name="MY_DB_URI", value="x"), "the variable MY_DB_URI"),
        (with_variable(name="BACKEND", value="postgres://u:p@elsewhere/d"), "the variable BACKEND"),
        (with_variable(name="SERVER", value="postgres.odd.svc:5432"), "the variable SERVER"),
        (with_variable(name="SERVER", value="10.88.0.1"), "the variable SERVER"),
        (
            with_variable(name="X", valueFrom={"secretKeyRef": {"name": "odd", "key": "X"}}),
            "the variable X comes from odd",
        ),
        (with_variable(name="X", valueFrom={"configMapKeyRef": {"name": "c", "key": "X"}}), "not a Secret"),
        ({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "odd"}}]}]}, "envFrom of c comes from odd"),
        ({"containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "c"}}]}]}, "not a Secret"),
        ({"containers": [{"name": "c", "command": ["psql", "host=postgres"]}]}, "the command of c"),
        ({"containers": [{"name": "c", "args": ["--to", "postgresql+psycopg://x"]}]}, "the command of c"),
        ({"containers": [], "initContainers": [{"name": "i", "args": ["u@postgres"]}]}, "the command of i"),
        ({"containers": [], "volumes": [{"name": "v", "configMap": {"name": "c"}}]}, "the volume v is a configMap"),
        (
            {"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "odd"}}]},
            "the volume v comes from odd",
        ),
        (
            {"containers": [], "volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "odd"}}]}}]},
            "the volume v comes from odd",
        ),
    ],
)
def test_a_migration_that_could_reach_another_database_is_not_run(pod, why):
    """It could change the live one."""
    with pytest.raises(FailedError, match=re.escape(why)) as error:
        migration_job.for_scratch(SECRETS, pod, "10.88.0.1")
    assert error.value.code == EXIT_COULD_NOT_VERIFY


@pytest.mark.parametrize(
    ("name", "value"), [("UPGRADE_URL", "https://example.org"), ("CACHE", "redis"), ("LIBRARY", "postgres-js")]
)
def test_what_names_no_database_is_no_reason_to_refuse(name, value):
    pod = {"containers": [{"name": "c", "env": [{"name": name, "value": value}], "args": ["migrate", "--wait", "60"]}]}
    assert migration_job.for_scratch(SECRETS, pod, "10.88.0.1") == pod


def answers(monkeypatch, **given):
    """kubectl, by the first word that it is asked with."""
    asked = []

    def kubectl(service, *words, stdin=""):
        assert service == "odd"
        asked.append(words[0])
        answer = given.get(words[0], "")
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else answer.pop(0)

    monkeypatch.setattr(migration_job, "kubectl", kubectl)
    monkeypatch.setattr(migration_job.time, "sleep", lambda seconds: None)
    return asked


def status(**fields):
    return json.dumps({"status": fields})


def test_a_migration_that_fails_in_the_cluster_fails_the_drill_and_leaves_nothing(monkeypatch):
    failed = status(conditions=[{"type": "Failed", "status": "True"}])
    asked = answers(monkeypatch, get=[json.dumps(released()), status(active=1), failed], logs="no such column\x1b[2J")
    with pytest.raises(FailedError, match=r"the migrations failed: no such column\?\[2J"):
        migration_job.migrate_in_k3s("odd", "10.88.0.1", 600)
    assert asked == ["get", "delete", "create", "get", "get", "logs", "delete"]


def service_of(**changed):
    values = {"name": "odd", "database": "odd", "owner": "odd_owner", "migration_limit_s": 600}
    return drill.Service(**values | {"queries": [], "classes": []} | changed)


def test_without_a_release_in_the_cluster_migrations_are_not_exercised(one, monkeypatch):
    asked = answers(monkeypatch, get="")
    monkeypatch.setattr(drill, "SCRATCH", one.folder)
    (one.folder / "log").touch()
    monkeypatch.setattr(one, "live", lambda *_: "1")
    one.migrate_service(service_of())
    assert one.result.not_exercised[0].why == "no release has left one"
    assert asked == ["get"]


@pytest.mark.parametrize(
    ("service", "what"),
    [
        (service_of(migration_limit_s=None), "odd: migrations on the restored database"),
        (service_of(database=None), "odd: restored database"),
        (service_of(), "odd: questions to the restored database"),
        (service_of(), "odd: rows of the restored database"),
    ],
)
def test_what_a_service_does_not_declare_is_not_exercised_by_name(one, monkeypatch, service, what):
    monkeypatch.setattr(one, "migrate_service", lambda _: None)
    one.own = replace(one.own, services=[service])
    one.answers |= {f"SELECT name FROM canary WHERE drill = '{one.id}' ORDER BY 1": "A", sql_names.ALL_TABLES: "[]"}
    one.migrate()
    one.question()
    assert what in [each.what for each in one.result.not_exercised]


def test_a_table_in_no_data_class_is_named(one):
    """Its name is the service's, and may be anything."""
    tables = [["public", "users"], ["billing", "in\x1bvoices"], ["public", "Users"]]
    one.answers[sql_names.ALL_TABLES] = json.dumps(tables)
    known = DataClass("must recover", [Table("users", None)])
    assert one.unclassified(service_of(classes=[known]), "odd") == "billing.in?voices, Users"


@pytest.fixture
def migrating(one, monkeypatch, tmp_path):
    """A drill whose migration does what a test says."""
    monkeypatch.setattr(drill, "SCRATCH", tmp_path)
    (tmp_path / "log").write_text("connection authorized: user=odd_owner database=odd application_name=x\n")
    schemas = iter([])

    def run(does, *found):
        nonlocal schemas
        schemas = iter(found)
        monkeypatch.setattr(one, "live", lambda statement, database: next(schemas))
        monkeypatch.setattr(migration_job, "migrate_in_k3s", lambda *_: does(tmp_path / "log") or True)
        one.migrate_service(service_of())

    return run


def logs_in(log):
    with log.open("a") as file:
        file.write("connection authorized: user=odd_owner database=odd\n")


def test_a_migration_must_have_been_at_the_restored_database(migrating, one):
    migrating(logs_in, "1", "1")
    assert one.result.checks[-1].outcome == "passed"
    with pytest.raises(FailedError, match="has not logged in to the restored database as odd_owner") as error:
        migrating(lambda log: None, "1", "1")
    assert error.value.code == EXIT_COULD_NOT_VERIFY


def test_a_migration_that_reached_the_live_database_fails_the_drill(migrating):
    with pytest.raises(FailedError, match="the live database odd has another schema than before") as error:
        migrating(logs_in, "1", "2")
    assert error.value.code == 1


def test_names_are_quoted():
    assert sql_names.table("Users") == '"public"."Users"'
    assert sql_names.table("billing.invoices") == '"billing"."invoices"'
    assert sql_names.table('a"; DROP TABLE x; --') == '"public"."a""; DROP TABLE x; --"'


def test_a_cluster_that_does_not_answer_is_no_verdict_on_the_backup(monkeypatch):
    def run(*_):
        raise FailedError("connection refused")

    monkeypatch.setattr(migration_job, "run", run)
    with pytest.raises(FailedError, match="could not be queried: connection refused") as error:
        migration_job.kubectl("odd", "get", "job")
    assert error.value.code == 4


def test_a_number_that_is_anothers_by_now_is_not_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(drill, "SCRATCH", tmp_path)
    (tmp_path / "data").mkdir()
    assert not drill._is_running()
    (tmp_path / "data/postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}/data\n")
    assert not drill._is_running()
    argv = [sys.executable, "-c", "print(flush=True); input()", "-D", f"{tmp_path}/data"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        server.stdout.readline()  # it runs
        (tmp_path / "data/postmaster.pid").write_text(f"{server.pid}\n")
        assert drill._is_running()


def test_the_scratch_configuration_shares_nothing_with_the_live_one():
    live = {
        "repo1-path": "/var/lib/pgbackrest",
        "repo2-type": "sftp",
        "repo2-cipher-pass": "x%y",
        "spool-path": "/var/spool/pgbackrest",
        "lock-path": "/run/postgresql/pgbackrest",
        "archive-async": "y",
        "process-max": "2",
    }
    text = drill.scratch_configuration(live, "main", 2)
    assert "repo1-type=sftp\nrepo1-cipher-pass=x%y\n" in text
    assert "repo2-" not in text
    assert "/var/lib/pgbackrest" not in text
    assert "/var/spool" not in text
    assert "/run/" not in text
    assert "archive-async=n" in text
    assert text.endswith(f"[main]\npg1-path={drill.SCRATCH}/data\n")


def test_repositories_take_turns(results):
    assert drill_results.next_repository([1, 2]) == 1
    (results / "20260101-000000-repo1.json").write_text("{}")
    assert drill_results.next_repository([1, 2]) == 2
    (results / "20260108-000000-repo2.json").write_text("{}")
    assert drill_results.next_repository([1, 2]) == 1
    assert drill_results.next_repository([1]) == 1


@pytest.fixture
def one(monkeypatch, tmp_path):
    """A drill whose scratch cluster answers from a table."""
    monkeypatch.setattr(drill, "RELEASE", tmp_path / "release")
    own = DrillSettings("/bin", "127.0.0.1", 5433, 1, "k3s", [])
    new = drill.Drill(settings_of(repos=[1]), own, 1)
    new.result.phases.append(drill_results.Phase("questions", 0))
    new.answers, new.folder = {}, tmp_path
    monkeypatch.setattr(new, "scratch", lambda statement, database: new.answers[statement])
    return new


@pytest.mark.parametrize(
    ("answer", "expect", "outcome"),
    [
        ("1", "== 1", "passed"),
        ("2", "== 1", "failed"),
        ("5", "> 0", "passed"),
        ("0", "> 0", "failed"),
        ("-3", ">= -3", "passed"),
        ("4", "<= 3", "failed"),
        ("x", "== 1", "failed"),
        ("", "== 0", "failed"),
    ],
)
def test_an_answer_is_compared_as_a_number(one, answer, expect, outcome):
    one.answers["SELECT n"] = answer
    one.ask("odd", "d", Query("q", "SELECT n", expect))
    assert one.result.checks[0].outcome == outcome
    assert answer in one.result.checks[0].message


@pytest.mark.parametrize(
    ("found", "passes"), [("A", True), ("A\nB", False), ("", False), ("B", False)], ids=["A", "A and B", "none", "B"]
)
def test_both_canaries_are_asked_for(one, found, passes):
    one.answers[f"SELECT name FROM canary WHERE drill = '{one.id}' ORDER BY 1"] = found
    if passes:
        one.question()
    else:
        with pytest.raises(FailedError, match="canary"):
            one.question()


@pytest.mark.parametrize("answer", ["", "many|1", "3|the end of time", "x|y|z"])
def test_an_answer_that_is_no_number_is_a_failed_check(one, monkeypatch, answer):
    """A service may have made anything of its table."""
    monkeypatch.setattr(one, "scratch", lambda statement, database: answer)
    one.count("odd", "d", DataClass("evidence", [Table("events", "at")]))
    assert [check.outcome for check in one.result.checks] == ["failed"]


def test_who_logs_in_depends_on_the_database(monkeypatch):
    """The superuser never in a service's database, where what it reads may be a function of the service."""
    lab = config.load("lab")
    monkeypatch.setattr(repositories, "settings", lambda: settings_of(logins=psql.logins(lab.postgres)))
    asked = {}

    def as_postgres(argv, timeout_s, stdin, env):
        asked[argv[argv.index("-d") + 1]] = (argv[argv.index("-U") + 1], env["PGOPTIONS"])
        return ""

    monkeypatch.setattr(repositories, "as_postgres", as_postgres)
    for database in ("postgres", "minipc", "parking"):
        repositories.sql("SELECT 1", database, 5432)
    assert {database: role for database, (role, _) in asked.items()} == {
        "postgres": "postgres",
        "minipc": "minipc",
        "parking": "parking_reader",
    }
    assert asked["postgres"][1].startswith("-c search_path=pg_catalog -c ")
    for protection in ("row_security=off", "default_transaction_read_only=on", "transaction_timeout=300000"):
        assert protection in asked["parking"][1]
    with pytest.raises(FailedError, match="no login for the database other"):
        repositories.sql("SELECT 1", "other", 5432)


def test_a_missing_table_is_a_failed_check(one, monkeypatch):
    def scratch(statement, database):
        if "lost" in statement:
            raise FailedError("relation lost does not exist")
        return "3|1795257108.5"

    monkeypatch.setattr(one, "scratch", scratch)
    tables = [Table("kept", "at"), Table("lost", None)]
    assert one.count("odd", "d", DataClass("evidence", tables)) == (3, 1795257108.5)
    assert [check.outcome for check in one.result.checks] == ["failed"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("unable to connect to '203.0.113.1:2222': Connection refused", 4),
        ("timeout connecting to '203.0.113.1:2222'", 4),
        ("cipher header invalid: is or was the repo encrypted?", 1),
    ],
)
def test_out_of_reach_is_no_verdict_and_a_wrong_passphrase_is_one(one, monkeypatch, message, code):
    def unreadable(stanza, repo):
        raise FailedError(message)

    monkeypatch.setattr(drill, "repository", unreadable)
    with pytest.raises(FailedError) as error:
        one.repository()
    assert error.value.code == code


def test_metrics_tell_the_last_verdict_and_the_last_pass(results):
    for name, verdict, ended in (("20260101-000000", "pass", 100), ("20260108-000000", "fail", 200)):
        result = {"repo": 1, "verdict": verdict, "started": ended - 9, "ended": ended, "rpo_seconds": 42.0}
        (results / f"{name}-repo1.json").write_text(json.dumps(result))
    drill_results.publish()
    seen = published("minipc_drill")
    assert seen['minipc_drill_verdict{repo="repo1",verdict="fail"}'] == 1
    assert seen['minipc_drill_verdict{repo="repo1",verdict="pass"}'] == 0
    assert seen['minipc_drill_last_pass_timestamp_seconds{repo="repo1"}'] == 100
    assert seen['minipc_drill_last_run_timestamp_seconds{repo="repo1"}'] == 200
    assert seen['minipc_drill_rpo_seconds{repo="repo1"}'] == 42


# --- data and documents ---------------------------------------------------------------------------------------------


def test_the_data_classes_are_those_that_the_migrations_declare():
    text = (ROOT / "examples/parking/minipc_workload/migrations/versions/0001_initial.py").read_text()
    declared = dict(re.findall(r'^    "([a-z ]+)": \[(.*)\],$', text, re.M))
    (service,) = read(["examples/parking/services"])
    for name, tables in service.data_classes.items():
        assert set(tables) == set(re.findall(r'"(\w+)"', declared[name])) - {"schema_version"}


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "machine/minipc_machine/shell").glob("*.sh")),
    ids=lambda path: path.name,
)
def test_shell_scripts_are_clean(path):
    subprocess.run(["sh", "-n", path], check=True)
    try:
        done = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("NOT EXERCISED: shellcheck is not installed")
    assert done.returncode == 0, done.stdout


# --- restore-state --------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshots(monkeypatch, tmp_path):
    """The program with a repository of three snapshots; notes what it restores."""
    module = restore_state
    monkeypatch.setattr(module, "DONE", tmp_path / "state.json")
    monkeypatch.setattr(module, "UNFINISHED", tmp_path / "state-unfinished")
    held = [
        {"id": "a" * 64, "short_id": "a", "time": "2025-03-01T01:00:00Z", "paths": ["/d", "/etc"]},
        {"id": "b" * 64, "short_id": "b", "time": "2025-03-03T01:00:00Z", "paths": ["/etc"]},
        {"id": "c" * 64, "short_id": "c", "time": "2025-03-02T01:00:00Z", "paths": ["/d"]},
    ]
    held = [each | {"hostname": "minipc", "tags": ["minipc"]} for each in held]
    other = {"id": "d" * 64, "short_id": "d", "time": "2025-03-04T01:00:00Z", "paths": ["/d"]}
    held += [other | {"hostname": "another", "tags": ["minipc"]}, other | {"hostname": "minipc", "tags": ["volume"]}]
    monkeypatch.setattr(module, "WITHOUT_STATE", tmp_path / "without")
    module.bad = []
    monkeypatch.setattr(module, "asked", [], raising=False)

    def restic(config, *arguments, **_):
        module.asked.append(arguments)
        if arguments[0] == "list":
            return "\n".join([*{each["id"] for each in held}, *module.bad])
        if arguments[0] != "snapshots":
            return ""
        # As restic 0.18 does: it panics on a file that is too short, and leaves out one that it can't decrypt.
        if any(name.startswith("0") for name in arguments):
            raise CommandError(
                "restic snapshots ended with 2: panic: runtime error: slice bounds out of range [16:7]", 2
            )
        return json.dumps([each for each in held if each["id"] in arguments])

    monkeypatch.setattr(module, "restic", restic)
    monkeypatch.setattr(repositories, "restic", restic)
    monkeypatch.setattr(repositories, "ensure_reachable", lambda config: None)
    monkeypatch.setattr(module, "settings", lambda: settings_of(restic=ResticSettings("r", "p", "c")))
    return module


def test_a_path_comes_back_from_the_newest_snapshot_that_has_it(snapshots):
    assert snapshots.main(["/d"]) == 0
    assert snapshots.asked[-1] == ("restore", "c" * 64, "--target", "/", "--include", "/d")
    assert json.loads(snapshots.DONE.read_text())["/d"]["snapshot"] == "c"


@pytest.mark.parametrize(("component", "snapshot"), [("redis", "a"), ("edge", "c")])
def test_a_return_takes_a_queue_from_before_the_moment_and_anything_else_from_the_newest_backup(
    snapshots, monkeypatch, component, snapshot
):
    config = settings_of(restic=ResticSettings("r", "p", "c"), paths=[(component, "/d")])
    monkeypatch.setattr(snapshots, "settings", lambda: config)
    monkeypatch.setattr(backup_state, "moment", lambda: datetime(2025, 3, 1, 12, tzinfo=UTC).timestamp())
    assert snapshots.main(["/d"]) == 0
    assert snapshots.asked[-1][:2] == ("restore", snapshot * 64)


def test_half_a_path_is_restored_again(snapshots, monkeypatch, tmp_path):
    """A power cut in the middle left files, and the path was taken for one that is in use."""
    path = tmp_path / "d"
    held = repositories.Snapshot("e" * 64, "e", "2025-03-05T01:00:00Z", [str(path)])
    monkeypatch.setattr(snapshots, "snapshots", lambda *_: [held])

    def cut(config, *arguments):
        path.mkdir()
        (path / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(snapshots, "restic", cut)
        with pytest.raises(KeyboardInterrupt):
            snapshots.main([str(path)])
    assert not snapshots.DONE.exists()
    assert snapshots.main([str(path)]) == 0
    assert snapshots.asked[-1][:2] == ("restore", held.id)
    assert json.loads(snapshots.DONE.read_text())[str(path)]["snapshot"] == "e"
    assert not snapshots.UNFINISHED.exists()


def test_what_is_there_or_was_never_backed_up_is_left(snapshots, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    assert snapshots.main([str(tmp_path / "kept"), "/never"]) == 0
    assert [each[0] for each in snapshots.asked] == ["list", "snapshots"]
    assert set(json.loads(snapshots.DONE.read_text())) == {str(tmp_path / "kept"), "/never"}


def test_a_repository_that_cannot_be_asked_is_asked_again_next_time(snapshots, monkeypatch):
    def fails(*_, **__):
        raise CommandError("restic snapshots ended with 1: no route to host", 1)

    monkeypatch.setattr(repositories, "restic", fails)
    with pytest.raises(FailedError, match="run again") as error:
        snapshots.main(["/d"])
    assert error.value.code == EXIT_COULD_NOT_VERIFY
    assert not snapshots.DONE.exists()


@pytest.mark.parametrize("bad", [["0" * 64], ["f" * 64], [f"0{number:063}" for number in range(5)] + ["f" * 64]])
def test_what_is_no_snapshot_is_skipped_by_name(snapshots, capsys, bad):
    """Seven bytes, written with the mini PC's password for the server, stopped backups and the rebuild."""
    snapshots.bad = bad
    assert snapshots.main(["/d"]) == 0
    assert snapshots.asked[-1] == ("restore", "c" * 64, "--target", "/", "--include", "/d")
    said = capsys.readouterr().out
    assert [name for name in bad if f"SKIPPED: snapshot {name} cannot be read" not in said] == []
    assert repositories.parent(snapshots.settings(), "minipc") == ["--parent", "b" * 64]
    assert published("minipc_restic") == {"minipc_backup_unreadable_snapshots": len(bad)}


def test_if_no_snapshot_can_be_read_nothing_looks_restored(snapshots, monkeypatch):
    monkeypatch.setattr(repositories, "_readable", lambda config, names: [])
    with pytest.raises(FailedError, match="none of 4 snapshots can be read"):
        snapshots.main(["/d"])
    assert not snapshots.DONE.exists()


def test_an_outage_is_not_taken_for_damage(snapshots, monkeypatch):
    asked = []

    def restic(config, *arguments, **_):
        asked.append(arguments)
        if arguments[0] == "list":
            return "a" * 64
        raise CommandError("restic snapshots ended with 1: connection refused", 1)

    def unreachable(_config):
        if len(asked) > 1:
            raise FailedError("restic: cannot be reached")

    monkeypatch.setattr(repositories, "restic", restic)
    monkeypatch.setattr(repositories, "ensure_reachable", unreachable)
    with pytest.raises(FailedError, match="cannot be reached"):
        snapshots.main(["/d"])


def test_a_rebuild_goes_on_without_state_if_it_is_told_to(snapshots, monkeypatch, capsys):
    def fails(*_, **__):
        raise CommandError("restic list ended with 1: cipher", 1)

    monkeypatch.setattr(repositories, "restic", fails)
    with pytest.raises(FailedError, match="minipc rebuild --without-state"):
        snapshots.main(["/d", "/e"])
    snapshots.WITHOUT_STATE.touch()
    assert snapshots.main(["/d", "/e"]) == 0
    assert "/e: NOT RESTORED, as --without-state accepts: restic list ended with 1" in capsys.readouterr().out
    assert {path: each["snapshot"] for path, each in json.loads(snapshots.DONE.read_text()).items()} == {
        "/d": None,
        "/e": None,
    }


def test_a_repository_that_was_never_made_has_nothing(snapshots, monkeypatch):
    def fails(*_, **__):
        raise CommandError("restic snapshots ended with 10: no repository", 10)

    monkeypatch.setattr(repositories, "restic", fails)
    assert snapshots.main(["/d"]) == 0


# --- drill: recovery -----------------------------------------------------------------------------------------------


@pytest.fixture
def recovery(monkeypatch, tmp_path):
    """A scratch cluster of which a test says, look by look, whether it runs and takes writes."""
    monkeypatch.setattr(drill, "SCRATCH", tmp_path / "scratch")
    (tmp_path / "scratch/data").mkdir(parents=True)
    monkeypatch.setattr(drill, "control_data", lambda *_: {"max_prepared_xacts setting": "1"})
    monkeypatch.setattr(drill, "as_postgres", lambda *_, **__: "")
    (tmp_path / "pg_hba.conf").write_text("local all postgres peer\n")
    monkeypatch.setattr(drill, "sql", lambda *_, **__: str(tmp_path / "pg_hba.conf"))
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(drill.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(drill.time, "sleep", lambda _: None)

    def run(*looks):
        states = iter(looks)
        subject = drill.Drill.__new__(drill.Drill)
        subject.config = CONFIG
        subject.result = drill_results.Result(1, 0, target="2026-11-30 12:00:00.000+00")
        subject.own = DrillSettings("/bin", "127.0.0.1", 5433, 1, "k3s", [])

        def promoted():
            there, done = next(states)
            monkeypatch.setattr(drill, "_is_running", lambda: there)
            return done

        subject._promoted = promoted
        subject.recover()

    return run


def test_a_server_that_is_slow_to_start_is_waited_for(recovery):
    recovery((False, False), (False, False), (True, False), (True, True))


def test_a_server_that_ends_is_told_at_once(recovery):
    with pytest.raises(FailedError, match="does not recover"):
        recovery((True, False), (False, False))


def test_a_pid_file_of_a_server_that_ended_is_not_waited_for(monkeypatch, tmp_path):
    """A killed server leaves it, and the drill waited for six hours."""
    monkeypatch.setattr(drill, "SCRATCH", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/postmaster.pid").write_text(f"{os.getpid()}\n")
    assert not drill._is_running()


def test_no_recovery_depends_on_settings_of_the_lost_machine():
    """With hot standby, a lower max_connections ends a restore, and a higher one in the WAL pauses a drill."""
    assert "\nhot_standby = off\n" in drill.SCRATCH_POSTGRESQL


def test_a_server_that_never_starts_is_not_waited_for_long(recovery):
    with pytest.raises(FailedError, match="does not recover"):
        recovery(*[(False, False)] * 20)


# --- stanza ---------------------------------------------------------------------------------------------------------


def test_the_first_backup_has_a_heartbeat(monkeypatch):
    """A rebuild from it must be able to say how old the data is."""
    asked = []
    monkeypatch.setattr(stanza, "sql", lambda text, *_: asked.append(text))
    stanza._prepare_heartbeat(5432)
    assert asked[-1] == "INSERT INTO heartbeat DEFAULT VALUES"


# --- restore: which WAL there is -----------------------------------------------------------------------------------

SEGMENT = 16 * 1024**2
ARRIVED = 1000


def listing(names):
    """What `pgbackrest repo-ls` prints: segments with their hash, histories, and what else is there."""
    files = [f"17-1/{each}" if "." in each else f"17-1/{each[:16]}/{each}-{'a' * 40}.zst" for each in names]
    return json.dumps(
        {name: {"type": "file", "time": ARRIVED} for name in [*files, "17-1/0000000100000000/x.00000028.backup"]}
    )


def segments(first, last, timeline=1):
    return [f"{timeline:08X}{number >> 8:08X}{number & 0xFF:08X}" for number in range(first, last + 1)]


def backup_of(first, last=None, timeline=1):
    """The segments that a backup needs."""
    return {"start": segments(first, first, timeline)[0], "stop": segments(last or first, last or first, timeline)[0]}


def left_at(*positions):
    """A history: where timeline 1, 2, … were left."""
    return "".join(f"{n}\t{at >> 32:X}/{at & 0xFFFFFFFF:X}\tno target\n" for n, at in enumerate(positions, start=1))


@pytest.fixture
def archive(monkeypatch):
    """Sets what each repository holds, and what the histories in them say."""

    def holds(histories=None, **repos):
        def pgbackrest(*arguments, **_):
            held = repos[f"repo{arguments[0].removeprefix('--repo=')}"]
            if held is None:
                raise FailedError("unable to connect")
            if "repo-get" in arguments:
                return (histories or {})[arguments[-1].rpartition("/")[2]]
            return listing(held) if held else "{}"

        monkeypatch.setattr(restore, "pgbackrest", pgbackrest)

    return holds


def test_wal_without_a_gap_may_be_restored(archive):
    """A timeline that begins half-way continues the numbers; what is before the backup doesn't matter."""
    held = [*segments(1, 2), *segments(0xFE, 0x103), *segments(0x103, 0x105, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=held, histories={"00000002.history": left_at(0x103 * SEGMENT + 0x150)})
    newest = segments(0x105, 0x105, timeline=2)[0]
    assert restore._wal_until(CONFIG, backup_of(0xFE), {}, accept_gap=False)[:2] == (newest, 2)


def test_repositories_fill_each_others_gaps(archive):
    archive(repo1=segments(4, 5), repo2=segments(6, 9))
    assert restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=False)[:2] == (segments(9, 9)[0], 1)


def test_a_gap_is_named_and_refused(archive):
    archive(repo1=None, repo2=[*segments(4, 6), *segments(8, 9)])
    with pytest.raises(FailedError, match="000000010000000000000007 is missing in every repository") as told:
        restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=False)
    assert "000000010000000000000009" in str(told.value)
    assert restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=True)[:2] == (segments(6, 6)[0], 1)


def test_a_backup_without_its_first_wal_is_none(archive):
    archive(repo1=[], repo2=segments(1, 3))
    with pytest.raises(FailedError, match="the first that the backup needs"):
        restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=True)


LEFT_AT_10 = {"00000002.history": left_at(0x10 * SEGMENT)}


def test_a_gap_on_the_new_timeline_is_not_filled_by_what_the_old_one_has_left(archive):
    """Recovery follows timeline 2 from segment 10 on, where its own 12 is missing."""
    new = [*segments(0x10, 0x11, timeline=2), *segments(0x13, 0x14, timeline=2)]
    archive(repo1=[], repo2=[*segments(4, 0xF), *new, "00000002.history"], histories=LEFT_AT_10)
    with pytest.raises(FailedError, match="000000020000000000000012 is missing"):
        restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=False)
    archive(repo1=[], repo2=[*segments(4, 0x14), *new, "00000002.history"], histories=LEFT_AT_10)
    with pytest.raises(FailedError, match=r"timeline 2 was begun before .* until 000000010000000000000014"):
        restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=False)
    assert restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=True)[:2] == (segments(0x11, 0x11, timeline=2)[0], 2)


def test_where_a_timeline_begins_within_a_segment_that_segment_must_be_its_own(archive):
    """The old one's ends half-way: what the new one wrote after that is only in its own."""
    histories = {"00000002.history": left_at(0x10 * SEGMENT + 0x150)}
    held = [*segments(4, 0x10), *segments(0x11, 0x12, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=held, histories=histories)
    with pytest.raises(FailedError, match="000000020000000000000010 is missing"):
        restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=False)
    archive(repo1=[], repo2=[*segments(4, 0x10), "00000002.history"], histories=histories)
    assert restore._wal_until(CONFIG, backup_of(4), {}, accept_gap=False)[:2] == (segments(0x10, 0x10)[0], 2)


def test_what_was_left_behind_before_the_backup_is_no_matter(archive):
    """A loss that was accepted once must not stop the next rebuild, nor lengthen its WAL."""
    held = [*segments(4, 0x20), *segments(0x10, 0x13, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=held, histories=LEFT_AT_10)
    needed = backup_of(0x11, timeline=2)
    assert restore._wal_until(CONFIG, needed, {}, accept_gap=False)[:2] == (segments(0x13, 0x13, timeline=2)[0], 2)


@pytest.mark.parametrize(
    ("held", "histories"),
    [
        ([*segments(4, 0x14), "00000002.history"], LEFT_AT_10),
        (segments(0x10, 0x11, timeline=2), {}),
    ],
    ids=["it left before the backup", "its history is gone"],
)
def test_a_newer_timeline_that_does_not_continue_the_backup_is_told(archive, held, histories):
    archive(repo1=[], repo2=[*segments(0x12, 0x14), *held], histories=histories)
    with pytest.raises(FailedError, match="timeline 2 does not continue the newest backup"):
        restore._wal_until(CONFIG, backup_of(0x12), {}, accept_gap=False)
    assert restore._wal_until(CONFIG, backup_of(0x12), {}, accept_gap=True)[:2] == (segments(0x14, 0x14)[0], 1)


# --- restore: back to a moment --------------------------------------------------------------------------------------


def test_a_return_follows_the_newest_timeline_unless_an_earlier_return_has_left_wal(archive):
    """What was abandoned was current when it was written."""
    new = [*segments(0x10, 0x11, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=[*segments(4, 0xF), *new], histories=LEFT_AT_10)
    assert restore._timeline_at(CONFIG, backup_of(4), 100) == 2
    archive(repo1=[], repo2=[*segments(4, 0x14), *new], histories=LEFT_AT_10)
    assert restore._timeline_at(CONFIG, backup_of(4), 100) == 1


def test_a_moment_after_the_newest_wal_is_refused(archive):
    archive(repo1=[], repo2=segments(4, 5))
    with pytest.raises(FailedError, match="choose an earlier moment"):
        restore._timeline_at(CONFIG, backup_of(4), ARRIVED + 1)


@pytest.fixture
def copying(place, monkeypatch, tmp_path):
    """An empty machine and two repositories with backups; a test says which of them are damaged."""
    shutil.rmtree(place.DATA)
    at = tmp_path / "rebuild-at"
    monkeypatch.setattr(backup_state, "REBUILD_AT", at)
    monkeypatch.setattr(backup_state, "STANZA", tmp_path / "stanza.json")
    monkeypatch.setattr(place, "ETC", tmp_path / "etc")
    monkeypatch.setattr(place.os, "chown", lambda *_: None)
    monkeypatch.setattr(place.pwd, "getpwnam", lambda _: SimpleNamespace(pw_uid=0, pw_gid=0))
    monkeypatch.setattr(place, "empty_auto_conf", lambda _: None)
    monkeypatch.setattr(place, "_wal_until", lambda *_, **__: ("000000010000000000000009", 1, restore.Sent({})))
    monkeypatch.setattr(place, "_timeline_at", lambda *_: 1)

    def go(*stops, damaged=(), moment=None):
        def backups(_, repo):
            found = [(f"{repo}-{stop}", stop) for stop in stops[repo - 1]]
            return {"backup": [_backup(label, stop) for label, stop in found]}

        def copy(_, repo, label):
            (place.DATA / "half").touch()
            if repo in damaged:
                raise place.DamagedError(f"the backup {label} in repo{repo} is damaged: checksum")

        monkeypatch.setattr(place, "repository", backups)
        monkeypatch.setattr(place, "_copy", copy)
        if moment is not None:
            at.write_text(f"{moment:.6f}")
        place.decide("restore")
        return schema.load(Restore, place.OUTCOME)

    return go


def _backup(label, stop):
    timestamp = {"stop": stop}
    return {"label": label, "timestamp": timestamp, "archive": {"start": "", "stop": ""}, "info": {"size": 1}}


DAY = 86400


def test_the_local_repository_comes_first(copying):
    assert copying([9 * DAY], [9 * DAY + 600]).label == f"1-{9 * DAY}"


def test_a_much_newer_backup_comes_first(copying):
    assert copying([7 * DAY], [9 * DAY]).label == f"2-{9 * DAY}"


def test_a_damaged_backup_is_passed_over_and_said(copying, place):
    outcome = copying([9 * DAY], [9 * DAY], damaged=[1])
    assert outcome.repo == 2
    assert "repo1 is damaged" in outcome.damaged


def test_if_all_backups_are_damaged_each_is_named(copying, place):
    with pytest.raises(FailedError, match=r"repo1 is damaged.*repo2 is damaged.*rebuild --at"):
        copying([9 * DAY], [9 * DAY], damaged=[1, 2])
    assert not any(place.DATA.iterdir())
    assert place.UNFINISHED.read_text() == "copying"


def test_a_return_uses_the_newest_backup_before_the_moment_and_ends_there(copying, place):
    outcome = copying([DAY, 3 * DAY], [2 * DAY, 4 * DAY], moment=2.5 * DAY)
    # The local one is a day older than that of the other repository, and not more.
    assert (outcome.label, outcome.moment, outcome.wal_until) == (f"1-{DAY}", 2.5 * DAY, None)
    settings = place.RECOVERY.read_text()
    assert "recovery_target_time = '1970-01-03 12:00:00.000000+00'" in settings
    assert "recovery_target_action = 'promote'" in settings
    # Recovery ends before the end of the WAL, as intended.
    place.recovered(CONFIG, accept_gap=False)
    assert not place.RECOVERY.exists()


def test_a_moment_before_every_backup_is_refused(copying, place):
    with pytest.raises(FailedError, match="no repository contains a backup from before 1970-01-01"):
        copying([DAY], [2 * DAY], moment=DAY / 2)
    assert not place.DATA.exists()


def test_an_ordinary_converge_knows_no_moment(copying, place):
    with pytest.raises(FailedError, match="from before 1970-01-01"):
        copying([DAY], [2 * DAY], moment=DAY / 2)
    with pytest.raises(FailedError, match="Restore it with `minipc rebuild`"):
        place.decide("refuse")


# --- restore: what an attempt has left ------------------------------------------------------------------------------


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A machine whose data directory, marks and repositories are the test's; notes the programs that were run."""
    monkeypatch.setattr(restore, "STATE", tmp_path / "state")
    monkeypatch.setattr(restore, "UNFINISHED", tmp_path / "state/restore-unfinished")
    monkeypatch.setattr(restore, "OUTCOME", tmp_path / "state/restore.json")
    monkeypatch.setattr(restore, "DATA", tmp_path / "main")
    monkeypatch.setattr(restore, "RECOVERY", tmp_path / "etc/minipc-recovery.conf")
    monkeypatch.setattr(restore, "settings", lambda: CONFIG)
    monkeypatch.setattr(restore, "repository", lambda stanza, repo: {})
    monkeypatch.setattr(restore, "control_data", lambda *_: {"Database system identifier": "7"})
    monkeypatch.setattr(restore, "asked", [], raising=False)

    def held():
        """Which settings of the recovery there are at that moment."""
        lines = restore.RECOVERY.read_text().splitlines()[1:] if restore.RECOVERY.exists() else []
        return ", with " + (" ".join(line.split(" = ")[0] for line in lines) or "nothing")

    def run(argv, *_, **__):
        restore.asked.append(" ".join(argv) + (held() if "restart" in argv else ""))
        if argv[0] == "find":
            subprocess.run(argv, check=True)

    monkeypatch.setattr(restore, "run", run)
    monkeypatch.setattr(restore, "pgbackrest", lambda *words, **_: restore.asked.append(" ".join(words)))
    monkeypatch.setattr(restore, "sql", lambda text, *_: restore.asked.append(text + held()))
    restore.STATE.mkdir(exist_ok=True)
    (restore.DATA / "global").mkdir(parents=True)
    (restore.DATA / "PG_VERSION").write_text("17\n")
    return restore


def backed_up(place, monkeypatch):
    """There is a backup; `_restore` itself is not tried here."""
    backup = {"label": "F", "timestamp": {"stop": 0}, "archive": {"start": "", "stop": ""}}
    monkeypatch.setattr(place, "repository", lambda stanza, repo: {"backup": [backup]})
    monkeypatch.setattr(place, "_restore", lambda *_, **__: place.asked.append("restored"))


@pytest.mark.parametrize("left", ["", "copying", "without-stanza", "ended-early"])
def test_an_ordinary_converge_leaves_what_a_restore_has_left(place, left):
    """Somebody may have started the server on it."""
    place.UNFINISHED.write_text(left)
    with pytest.raises(FailedError, match=r"minipc rebuild.*Nothing was changed") as error:
        place.decide("refuse")
    assert error.value.code == place.EXIT_REFUSED
    assert (place.DATA / "PG_VERSION").exists()
    assert place.asked == []


def test_half_a_copy_is_removed_and_the_restore_begins_anew(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("copying")
    assert place.decide("restore") == 0
    assert not any(place.DATA.iterdir())
    assert place.asked[-1] == "restored"


def test_what_may_be_a_database_is_moved_aside(place, monkeypatch):
    """pgBackRest writes pg_control last."""
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("copying")
    (place.DATA / "global/pg_control").touch()
    assert place.decide("restore") == 0
    (aside,) = place.DATA.parent.glob("main.aside-*")
    assert (aside / "PG_VERSION").exists()
    assert place.asked == ["restored"]


def test_a_server_on_half_a_copy_is_left_alone(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("copying")
    (place.DATA / "postmaster.pid").touch()
    with pytest.raises(FailedError, match="a server uses") as error:
        place.decide("restore")
    assert error.value.code == place.EXIT_REFUSED
    assert (place.DATA / "PG_VERSION").exists()
    assert place.asked == []


def test_restored_files_are_kept_when_only_the_stanza_is_missing(place):
    """The off-site machine went away in between; meanwhile the server may have begun to take writes."""
    place.UNFINISHED.write_text("without-stanza")
    (place.DATA / "global/pg_control").touch()
    (place.DATA / "postmaster.pid").touch()
    assert place.decide("restore") == 0
    assert place.asked == ["--stanza=main --no-online stanza-create"]
    assert not place.UNFINISHED.exists()
    assert (place.DATA / "PG_VERSION").exists()


def test_restored_files_that_somebody_took_away_are_restored_again(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("without-stanza")
    subprocess.run(["rm", "-r", place.DATA], check=True)
    assert place.decide("restore") == 0
    assert place.asked == ["restored"]


def test_a_recovery_that_ended_early_is_restored_anew(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("ended-early")
    (place.DATA / "global/pg_control").touch()
    assert place.decide("restore") == 0
    assert place.asked == ["systemctl stop postgresql@17-main", "restored"]
    assert len(list(place.DATA.parent.glob("main.aside-*"))) == 1


@pytest.mark.parametrize("mode", ["restore", "restore-incomplete"])
def test_a_rebuild_without_any_backup_makes_no_database(place, mode):
    """The repository may have been wiped: a new database would be the end of it."""
    subprocess.run(["rm", "-r", place.DATA], check=True)
    with pytest.raises(FailedError, match="offsite-restore-copy") as error:
        place.decide(mode)
    assert error.value.code == place.EXIT_REFUSED
    assert place.decide("refuse") == 0, "outside a rebuild, a first database may be made"


# --- restore: where recovery ended ----------------------------------------------------------------------------------


def ended(place, until, *positions):
    """A restored server that left its timelines there; `until` is the newest segment that there was."""
    place.OUTCOME.write_text(schema.dump(Restore(1, "F", 1, 1, 1, until)))
    (place.DATA / "pg_wal").mkdir()
    if positions:
        (place.DATA / f"pg_wal/{len(positions) + 1:08X}.history").write_text(left_at(*positions))


@pytest.mark.parametrize(
    ("until", "positions"),
    [
        (segments(0xE, 0xE)[0], [0xF * SEGMENT]),
        (segments(0xE, 0xE)[0], [0xE * SEGMENT + 0x150]),
        (segments(0x105, 0x105, timeline=2)[0], [3 * SEGMENT, 0x105 * SEGMENT + 0x60]),
        (None, [3 * SEGMENT]),
        (segments(0xE, 0xE)[0], []),
    ],
)
def test_a_recovery_that_went_as_far_as_there_was_wal_begins_to_archive(place, until, positions):
    ended(place, until, *positions)
    assert place.decide("recovered", "restore") == 0
    assert place.asked == [
        "systemctl restart postgresql@17-main, with restore_command",
        "SELECT pg_reload_conf(), with nothing",
    ]
    assert not place.UNFINISHED.exists()


def test_a_recovery_that_ended_too_early_archives_nothing(place):
    """Its timeline would be the one that the next restore follows."""
    ended(place, segments(0xE, 0xE)[0], 9 * SEGMENT)
    with pytest.raises(FailedError, match="ended at 0/9000000, before WAL segment 00000001000000000000000E"):
        place.decide("recovered", "restore")
    assert place.asked == []
    assert place.UNFINISHED.read_text() == "ended-early"


def test_the_loss_can_be_accepted(place):
    ended(place, segments(0xE, 0xE)[0], 9 * SEGMENT)
    assert place.decide("recovered", "restore-incomplete") == 0
    assert place.asked[-1] == "SELECT pg_reload_conf(), with nothing"


def test_a_restored_server_archives_nothing_yet(place, monkeypatch):
    """Nothing of what the backup had in postgresql.auto.conf is left: it would outrank every other file."""
    auto_conf = place.DATA / "postgresql.auto.conf"
    auto_conf.write_text("recovery_end_command = 'id > /root/owned'\nrestore_command = 'pgbackrest …'\n")
    monkeypatch.setattr(place, "_wal_until", lambda *_, **__: ("F", 2, restore.Sent({})))
    monkeypatch.setattr(place, "_copy", lambda *_: None)
    monkeypatch.setattr(place, "_write_cluster_configuration", lambda account: None)
    monkeypatch.setattr(place.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid()))
    monkeypatch.setattr(place, "_make_stanza", lambda config: None)
    monkeypatch.setattr(repositories, "as_postgres", lambda argv, *_: subprocess.run(argv, check=True) and "")
    place._restore(CONFIG, {1: _backup("F", 0)}, None, accept_gap=False)
    assert auto_conf.read_text() == ""
    _, command, *others = place.RECOVERY.read_text().splitlines()
    assert others == ["recovery_target_timeline = '2'", "archive_command = ''", "hot_standby = 'off'"]
    assert command.startswith('restore_command = \'pgbackrest --stanza=main archive-get %f "%p" || ')
    assert command.count("'") == 2


@pytest.mark.parametrize(
    ("together", "repo1", "repo2", "code"),
    [
        (0, 0, 0, 0),
        (1, 1, 0, 0),
        (1, 1, 1, 1),
        # pgBackRest says 1 when the repository that answers does not have it.
        (1, 1, 103, 126),
        (1, 103, 1, 126),
        (103, 103, 103, 126),
        (103, 1, 0, 0),
    ],
)
def test_wal_that_could_not_be_asked_for_is_not_the_end_of_it(tmp_path, together, repo1, repo2, code):
    """PostgreSQL stops above 125, and promotes after anything else."""
    program = tmp_path / "pgbackrest"
    program.write_text(f"""#!/bin/sh
case "$*" in *--repo=1*) exit {repo1};; *--repo=2*) exit {repo2};; *) exit {together};; esac
""")
    program.chmod(0o755)
    command = (
        restore.RESTORE_COMMAND.format(stanza="main", repos="1 2", received="")
        .replace("%f", "name")
        .replace("%p", "path")
    )
    path = f"{tmp_path}:/usr/bin:/bin"
    assert subprocess.run(["sh", "-c", command], env={"PATH": path}, check=False).returncode == code


@pytest.mark.parametrize(
    "said",
    [
        "restore ended with 29: ERROR: [029]: unable to decompress",
        "ERROR: [026]: error restoring 'base/1/2': actual checksum 'a' does not match expected checksum 'b'",
    ],
)
def test_a_damaged_backup_is_called_that(monkeypatch, said):
    def pgbackrest(*_):
        raise FailedError(said)

    monkeypatch.setattr(restore, "pgbackrest", pgbackrest)
    with pytest.raises(FailedError, match=r"the backup 2026F in repo2 is damaged.*ERROR"):
        restore._copy("main", 2, "2026F")
