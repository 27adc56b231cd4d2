"""The programs that run on the machine: what can be known without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minipc.config.load import group_data
from minipc.paths import ROOT

# Two components' files; on the machine they are in one folder.
FOLDERS = [ROOT / "templates/repositories", ROOT / "templates/backups"]


def load(name):
    path = next(folder / f"{name}.py" for folder in FOLDERS if (folder / f"{name}.py").exists())
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def common(monkeypatch, tmp_path):
    """The shared module, with its folders in a place of the test's own."""
    module = load("common")
    monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(module, "TEXTFILES", tmp_path / "textfiles")
    yield module
    sys.modules.pop("common")


@pytest.fixture
def drill(common, monkeypatch, tmp_path):
    module = load("drill")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "drills")
    module.RESULTS.mkdir()
    return module


@pytest.fixture
def backup(common):
    module = load("backup")
    module.OUTCOMES = common.STATE / "outcomes.json"
    return module


def metrics(common, name):
    lines = (common.TEXTFILES / f"{name}.prom").read_text().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


@pytest.fixture
def restore(common):
    return load("restore")


# --- common ---------------------------------------------------------------------------------------------------------


def test_metrics_are_escaped_and_replaced_as_a_whole(common):
    common.write_metrics("m", {"a": ("Help.", [({"path": 'x"\\y\n'}, 1.5)])})
    common.write_metrics("m", {"b": ("Help.", [({}, True), ({"repo": "repo1"}, 1795257108.123)])})
    text = (common.TEXTFILES / "m.prom").read_text()
    assert text == '# HELP b Help.\n# TYPE b gauge\nb 1\nb{repo="repo1"} 1795257108\n'
    assert [path.name for path in common.TEXTFILES.iterdir()] == ["m.prom"]


def test_a_label_keeps_its_meaning(common):
    common.write_metrics("m", {"a": ("Help.", [({"path": 'x"\\y\n'}, 1)])})
    assert 'a{path="x\\"\\\\y\\n"} 1' in (common.TEXTFILES / "m.prom").read_text()


def test_a_failure_tells_the_command_without_its_options(common):
    with pytest.raises(common.FailedError, match=r"^sh .* ended with 3: told$"):
        common.run(["sh", "-c", "echo told >&2; exit 3"])
    assert common._short(["setpriv", "--x", "--", "pgbackrest", "--stanza=main", "backup"]) == "pgbackrest backup"
    assert common._short(["restic", "--password-file", "p"]) == "restic p"


def test_only_one_at_a_time(common, tmp_path, monkeypatch):
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *rest, **more: real(tmp_path / "lock", *rest, **more))
    with common.locked("drill", 0):
        with pytest.raises(common.FailedError, match="another drill is running") as error, common.locked("drill", 0):
            pass
        assert error.value.code == common.EXIT_COULD_NOT_VERIFY
    with common.locked("drill", 0):
        pass


@pytest.mark.parametrize(("code", "refused"), [(0, False), (1, False), (2, False), (6, True), (99, True)])
def test_a_repository_that_cannot_be_read_is_not_an_empty_one(common, monkeypatch, code, refused):
    info = [{"repo": [{"key": 2, "status": {"code": code, "message": "told"}}], "backup": [], "db": []}]
    monkeypatch.setattr(common, "pgbackrest", lambda *arguments, **options: json.dumps(info))
    if refused:
        with pytest.raises(common.FailedError, match="repo2 can't be read: told"):
            common.repository("main", 2)
    else:
        assert common.repository("main", 2)["backup"] == []


def test_a_wrong_passphrase_is_called_one(common):
    told = common._unreadable(1, "[FormatError] unable to load info file 'x':\nFormatError: at line 1: \x00\ufffd")
    assert told == (
        "repo1 can't be decrypted: the passphrase is wrong or the repository is damaged: "
        "[FormatError] unable to load info file 'x':"
    )


# --- backup ---------------------------------------------------------------------------------------------------------


def test_a_failed_backup_keeps_the_time_of_the_last_good_one(backup, common, capsys):
    config = {"paths": [["host", "/etc"], ["edge", "/nonexistent"]]}
    assert backup.attempt(config, "repo1", lambda: {"label": "L", "size": 10})
    first = common.read_json(backup.OUTCOMES)["repo1"]["last_success"]

    def fails():
        raise common.FailedError("disk full")

    assert not backup.attempt(config, "repo1", fails)
    assert backup.attempt(config, "repo2", lambda: {"label": "L", "size": 20})
    seen = metrics(common, "minipc_backups")
    assert seen['minipc_backup_success{repo="repo1"}'] == 0
    assert seen['minipc_backup_success{repo="repo2"}'] == 1
    assert seen['minipc_backup_last_success_timestamp_seconds{repo="repo1"}'] == pytest.approx(first, abs=1)
    assert seen['minipc_backup_size_bytes{repo="repo2"}'] == 20
    assert seen['minipc_backup_path_present{component="edge",path="/nonexistent"}'] == 0
    assert seen['minipc_backup_path_present{component="host",path="/etc"}'] == 1
    assert "repo1: FAILED: disk full" in capsys.readouterr().err


def test_a_backup_that_never_succeeded_has_no_time_of_success(backup, common):
    def fails():
        raise common.FailedError("unreachable")

    backup.attempt({"paths": []}, "repo2", fails)
    assert not [name for name in metrics(common, "minipc_backups") if "last_success" in name]


def test_a_backup_of_damaged_pages_is_no_success(backup, monkeypatch):
    """pgBackRest ends with 0."""
    newest = {"label": "20261127-020000F", "error": True, "info": {"repository": {"delta": 1}}}
    monkeypatch.setattr(backup, "pgbackrest", lambda *_: "")
    monkeypatch.setattr(backup, "repository", lambda *_: {"backup": [newest]})
    with pytest.raises(backup.FailedError, match="20261127-020000F in repo1 holds damaged pages"):
        backup.database({"stanza": "main"}, 1, "full")
    newest["error"] = False
    assert backup.database({"stanza": "main"}, 1, "full")["label"] == "20261127-020000F"


def test_one_repository_that_fails_does_not_keep_the_next_from_being_tried(backup, common, monkeypatch):
    def database(config, repo, kind):
        if repo == 1:
            raise common.FailedError("disk full")
        return {"label": kind, "size": 1}

    monkeypatch.setattr(backup, "database", database)
    assert backup._take({"repos": [1, 2], "paths": []}, "diff") == [False, True]


# --- drill ----------------------------------------------------------------------------------------------------------


def test_a_result_that_a_power_cut_has_torn_hides_no_other(drill, common):
    (drill.RESULTS / "20261101-000000-repo1.json").write_text('{"repo": 1, "ver')
    good = {"repo": 2, "verdict": "pass", "started": 1.0, "ended": 2.0, "rpo_seconds": 3.0}
    (drill.RESULTS / "20261102-000000-repo2.json").write_text(json.dumps(good))
    drill.publish()
    assert metrics(common, "minipc_drill")['minipc_drill_duration_seconds{repo="repo2"}'] == 1


@pytest.mark.parametrize(
    ("segment", "end"),
    [
        ("000000010000000000000005", "0/6000000"),
        ("0000000100000000000000FF", "1/0"),
        ("0000000A00000002000000FE", "2/FF000000"),
    ],
)
def test_the_end_of_a_segment(drill, segment, end):
    assert drill.segment_end(segment) == end


RELEASED = {
    "metadata": {"name": "migrate", "annotations": {"argocd.argoproj.io/tracking-id": "workload"}},
    "spec": {
        "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "1"}},
        "template": {
            "metadata": {
                "labels": {
                    "app.kubernetes.io/component": "migrate",
                    "batch.kubernetes.io/controller-uid": "1",
                    "batch.kubernetes.io/job-name": "migrate",
                    "controller-uid": "1",
                    "job-name": "migrate",
                },
                "annotations": {"org.opencontainers.image.revision": "a1"},
            },
            "spec": {
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "workload",
                        "image": "workload:a1",
                        "args": ["migrate"],
                        "env": [
                            {"name": "DATABASE_HOST", "value": "postgres"},
                            {"name": "REDIS_HOST", "value": "redis"},
                        ],
                    }
                ],
            },
        },
    },
}


def test_the_job_of_a_drill_is_the_releases_with_another_database(drill):
    job = drill.drill_job(json.loads(json.dumps(RELEASED)), {"DATABASE_HOST": "10.88.0.1", "DATABASE_PORT": "5433"})
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == ("workload:a1", ["migrate"])
    assert {each["name"]: each["value"] for each in container["env"]} == {
        "DATABASE_HOST": "10.88.0.1",
        "DATABASE_PORT": "5433",
        "REDIS_HOST": "redis",
    }
    assert job["spec"]["template"]["metadata"] == {
        "labels": {"app.kubernetes.io/component": "migrate"},
        "annotations": {"org.opencontainers.image.revision": "a1"},
    }
    assert job["metadata"] == {"name": "drill-migrate"}, "ArgoCD would take it for its own"
    assert "selector" not in job["spec"]


def answers(monkeypatch, drill, **given):
    """kubectl, by the first word that it is asked with."""
    asked = []

    def kubectl(*words, stdin=""):
        asked.append(words[0])
        answer = given.get(words[0], "")
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else answer.pop(0)

    monkeypatch.setattr(drill, "kubectl", kubectl)
    monkeypatch.setattr(drill.time, "sleep", lambda seconds: None)
    return asked


def status(**fields):
    return json.dumps({"status": fields})


def test_a_migration_that_fails_in_the_cluster_fails_the_drill_and_leaves_nothing(drill, monkeypatch):
    failed = status(conditions=[{"type": "Failed", "status": "True"}])
    asked = answers(monkeypatch, drill, get=[json.dumps(RELEASED), status(active=1), failed], logs="no such column")
    one = SimpleNamespace(result={"not_exercised": []})
    with pytest.raises(drill.FailedError, match="the migrations failed: no such column"):
        drill.Drill.migrate_in_the_cluster(one, "migrate", {})
    assert asked == ["get", "delete", "create", "get", "get", "logs", "delete"]


def test_without_a_release_in_the_cluster_migrations_are_not_exercised(drill, monkeypatch):
    asked = answers(monkeypatch, drill, get="")
    one = SimpleNamespace(result={"not_exercised": []})
    drill.Drill.migrate_in_the_cluster(one, "migrate", {})
    assert one.result["not_exercised"][0]["why"] == "no release has left a job migrate"
    assert asked == ["get"]


def test_a_cluster_that_does_not_answer_is_no_verdict_on_the_backup(drill, monkeypatch):
    def run(*_):
        raise drill.FailedError("connection refused")

    monkeypatch.setattr(drill, "run", run)
    with pytest.raises(drill.FailedError, match="could not be asked: connection refused") as error:
        drill.kubectl("get", "job")
    assert error.value.code == 4


def test_a_migration_that_takes_its_database_from_elsewhere_is_not_run(drill):
    """It would change the living one."""
    job = json.loads(json.dumps(RELEASED))
    job["spec"]["template"]["spec"]["initContainers"] = [{"name": "first", "env": []}]
    with pytest.raises(drill.FailedError, match=r"elsewhere than DATABASE_HOST \(first\)") as error:
        drill.drill_job(job, {"DATABASE_HOST": "10.88.0.1"})
    assert error.value.code == 4


def test_a_number_that_is_anothers_by_now_is_not_stopped(drill, monkeypatch, tmp_path):
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


def test_the_scratch_configuration_shares_nothing_with_the_live_one(drill):
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


def test_repositories_take_turns(drill):
    assert drill.next_repository([1, 2]) == 1
    (drill.RESULTS / "20260101-000000-repo1.json").write_text("{}")
    assert drill.next_repository([1, 2]) == 2
    (drill.RESULTS / "20260108-000000-repo2.json").write_text("{}")
    assert drill.next_repository([1, 2]) == 1
    assert drill.next_repository([1]) == 1


def test_the_service_settings_are_read_as_systemd_reads_them(drill, tmp_path):
    path = tmp_path / "env"
    path.write_text('# comment\nA="x y"\nB="a\\"b\\\\c=d"\n\n')
    assert drill.environment_file(path) == {"A": "x y", "B": 'a"b\\c=d'}


@pytest.fixture
def one(drill, common, monkeypatch):
    """A drill whose scratch cluster answers from a table."""
    monkeypatch.setattr(drill, "read_json", lambda path: {"queries": [], "classes": []})
    new = drill.Drill({"repos": [1]}, 1)
    new.result["phases"].append({"name": "questions"})
    new.answers = {}
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
    one.ask({"name": "q", "database": "d", "sql": "SELECT n", "expect": expect})
    assert one.result["checks"][0]["outcome"] == outcome
    assert answer in one.result["checks"][0]["message"]


@pytest.mark.parametrize(
    ("found", "passes"), [("A", True), ("A\nB", False), ("", False), ("B", False)], ids=["A", "A and B", "none", "B"]
)
def test_both_canaries_are_asked_for(one, common, found, passes):
    one.answers[f"SELECT name FROM canary WHERE drill = '{one.id}' ORDER BY 1"] = found
    if passes:
        one.question()
    else:
        with pytest.raises(common.FailedError, match="canary"):
            one.question()


def test_a_missing_table_is_a_failed_check(one, common, monkeypatch):
    def scratch(statement, database):
        if "lost" in statement:
            raise common.FailedError("relation lost does not exist")
        return "3|1795257108.5"

    monkeypatch.setattr(one, "scratch", scratch)
    tables = [{"name": "kept", "timestamp": "at"}, {"name": "lost", "timestamp": None}]
    assert one.count({"name": "evidence", "database": "d", "tables": tables}) == (3, 1795257108.5)
    assert [check["outcome"] for check in one.result["checks"]] == ["failed"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("unable to connect to '203.0.113.1:2222': Connection refused", 4),
        ("timeout connecting to '203.0.113.1:2222'", 4),
        ("cipher header invalid: is or was the repo encrypted?", 1),
    ],
)
def test_out_of_reach_is_no_verdict_and_a_wrong_passphrase_is_one(drill, one, common, monkeypatch, message, code):
    def unreadable(stanza, repo):
        raise common.FailedError(message)

    monkeypatch.setattr(drill, "repository", unreadable)
    one.config["stanza"] = "main"
    with pytest.raises(common.FailedError) as error:
        one.repository()
    assert error.value.code == code


def test_metrics_tell_the_last_verdict_and_the_last_pass(drill, common):
    for name, verdict, ended in (("20260101-000000", "pass", 100), ("20260108-000000", "fail", 200)):
        result = {"repo": 1, "verdict": verdict, "started": ended - 9, "ended": ended, "rpo_seconds": 42.0}
        (drill.RESULTS / f"{name}-repo1.json").write_text(json.dumps(result))
    drill.publish()
    seen = metrics(common, "minipc_drill")
    assert seen['minipc_drill_verdict{repo="repo1",verdict="fail"}'] == 1
    assert seen['minipc_drill_verdict{repo="repo1",verdict="pass"}'] == 0
    assert seen['minipc_drill_last_pass_timestamp_seconds{repo="repo1"}'] == 100
    assert seen['minipc_drill_last_run_timestamp_seconds{repo="repo1"}'] == 200
    assert seen['minipc_drill_rpo_seconds{repo="repo1"}'] == 42


# --- data and documents ---------------------------------------------------------------------------------------------


def test_the_data_classes_are_those_that_the_migrations_declare():
    text = (ROOT / "workload/minipc_workload/migrations/versions/0001_initial.py").read_text()
    declared = dict(re.findall(r'^    "([a-z ]+)": \[(.*)\],$', text, re.M))
    for each in group_data("lab")["backups_data_classes"]:
        tables = {table["name"] for table in each["tables"]}
        assert tables == set(re.findall(r'"(\w+)"', declared[each["name"]])) - {"schema_version"}


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in [*FOLDERS, ROOT / "templates/offsite"] for path in folder.glob("*.sh")),
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
def restore_state(common, monkeypatch):
    """The program with a repository of three snapshots; notes what it restores."""
    module = load("restore_state")
    module.DONE = common.STATE / "state.json"
    snapshots = [
        {"id": "a" * 64, "short_id": "a", "time": "2025-03-01T01:00:00Z", "paths": ["/d", "/etc"]},
        {"id": "b" * 64, "short_id": "b", "time": "2025-03-03T01:00:00Z", "paths": ["/etc"]},
        {"id": "c" * 64, "short_id": "c", "time": "2025-03-02T01:00:00Z", "paths": ["/d"]},
    ]
    module.asked = []

    def restic(config, *arguments, **_):
        module.asked.append(arguments)
        return json.dumps(snapshots) if arguments[0] == "snapshots" else ""

    monkeypatch.setattr(module, "restic", restic)
    monkeypatch.setattr(module, "ensure_reachable", lambda config: None)
    monkeypatch.setattr(module, "settings", lambda: {"host": "minipc"})
    return module


def test_a_path_comes_back_from_the_newest_snapshot_that_has_it(restore_state):
    assert restore_state.main(["/d"]) == 0
    assert restore_state.asked[-1] == ("restore", "c" * 64, "--target", "/", "--include", "/d")
    assert json.loads(restore_state.DONE.read_text())["/d"]["snapshot"] == "c"


def test_what_is_there_or_was_never_backed_up_is_left(restore_state, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    assert restore_state.main([str(tmp_path / "kept"), "/never"]) == 0
    assert [each[0] for each in restore_state.asked] == ["snapshots"]
    assert set(json.loads(restore_state.DONE.read_text())) == {str(tmp_path / "kept"), "/never"}


def test_a_repository_that_cannot_be_asked_is_asked_again_next_time(restore_state, common, monkeypatch):
    def fails(*_, **__):
        raise common.FailedError("restic snapshots ended with 1: no route to host")

    monkeypatch.setattr(restore_state, "restic", fails)
    with pytest.raises(common.FailedError, match="run again") as error:
        restore_state.main(["/d"])
    assert error.value.code == common.EXIT_COULD_NOT_VERIFY
    assert not restore_state.DONE.exists()


def test_a_repository_that_was_never_made_has_nothing(restore_state, common, monkeypatch):
    def fails(*_, **__):
        raise common.FailedError("restic snapshots ended with 10: no repository")

    monkeypatch.setattr(restore_state, "restic", fails)
    assert restore_state.main(["/d"]) == 0


# --- drill: recovery -----------------------------------------------------------------------------------------------


@pytest.fixture
def recovery(drill, monkeypatch, tmp_path):
    """A scratch cluster of which a test says, look by look, whether its pid file is there and it takes writes."""
    monkeypatch.setattr(drill, "SCRATCH", tmp_path / "scratch")
    (tmp_path / "scratch/data").mkdir(parents=True)
    monkeypatch.setattr(drill, "control_data", lambda *_: dict.fromkeys(drill.MINIMUMS, "1"))
    monkeypatch.setattr(drill, "as_postgres", lambda *_, **__: "")
    monkeypatch.setattr(drill, "sql", lambda *_, **__: "/etc/postgresql/17/main/pg_hba.conf")
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(drill.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(drill.time, "sleep", lambda _: None)
    pid = tmp_path / "scratch/data/postmaster.pid"

    def run(*looks):
        states = iter(looks)
        subject = drill.Drill.__new__(drill.Drill)
        subject.config = {"port": 5432}
        subject.own = {"bin": "/bin", "address": "127.0.0.1", "port": 5433}

        def promoted():
            there, done = next(states)
            pid.touch() if there else pid.unlink(missing_ok=True)
            return done

        subject._promoted = promoted
        subject.recover()

    return run


def test_a_server_that_is_slow_to_start_is_waited_for(recovery):
    recovery((False, False), (False, False), (True, False), (True, True))


def test_a_server_that_ends_is_told_at_once(recovery, drill):
    with pytest.raises(drill.FailedError, match="does not recover"):
        recovery((True, False), (False, False))


def test_a_server_that_never_starts_is_not_waited_for_long(recovery, drill):
    with pytest.raises(drill.FailedError, match="does not recover"):
        recovery(*[(False, False)] * 20)


# --- stanza ---------------------------------------------------------------------------------------------------------


def test_the_first_backup_has_a_heartbeat(common, monkeypatch):
    """A rebuild from it must be able to say how old the data is."""
    stanza = load("stanza")
    asked = []
    monkeypatch.setattr(stanza, "sql", lambda text, *_: asked.append(text))
    stanza._prepare_heartbeat(5432)
    assert asked[-1] == "INSERT INTO heartbeat DEFAULT VALUES"


# --- restore: which WAL there is -----------------------------------------------------------------------------------

CONFIG = {"stanza": "main", "repos": [1, 2], "port": 5432}
SEGMENT = 16 * 1024**2


def listing(names):
    """What `pgbackrest repo-ls` prints: segments with their hash, histories, and what else is there."""
    files = [f"17-1/{each}" if "." in each else f"17-1/{each[:16]}/{each}-{'a' * 40}.zst" for each in names]
    return json.dumps({name: {"type": "file"} for name in [*files, "17-1/0000000100000000/x.00000028.backup"]})


def segments(first, last, timeline=1):
    return [f"{timeline:08X}{number >> 8:08X}{number & 0xFF:08X}" for number in range(first, last + 1)]


def backup_of(first, last=None, timeline=1):
    """The segments that a backup needs."""
    return {"start": segments(first, first, timeline)[0], "stop": segments(last or first, last or first, timeline)[0]}


def left_at(*positions):
    """A history: where timeline 1, 2, … were left."""
    return "".join(f"{n}\t{at >> 32:X}/{at & 0xFFFFFFFF:X}\tno target\n" for n, at in enumerate(positions, start=1))


@pytest.fixture
def archive(restore, monkeypatch):
    """Sets what each repository holds, and what the histories in them say."""

    def holds(histories=None, **repos):
        def pgbackrest(*arguments, **_):
            held = repos[f"repo{arguments[0].removeprefix('--repo=')}"]
            if held is None:
                raise restore.FailedError("unable to connect")
            if "repo-get" in arguments:
                return (histories or {})[arguments[-1].rpartition("/")[2]]
            return listing(held) if held else "{}"

        monkeypatch.setattr(restore, "pgbackrest", pgbackrest)

    return holds


def test_wal_without_a_gap_may_be_restored(restore, archive):
    """A timeline that begins half-way continues the numbers; what is before the backup doesn't matter."""
    held = [*segments(1, 2), *segments(0xFE, 0x103), *segments(0x103, 0x105, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=held, histories={"00000002.history": left_at(0x103 * SEGMENT + 0x150)})
    newest = segments(0x105, 0x105, timeline=2)[0]
    assert restore._wal_until(CONFIG, backup_of(0xFE), accept_gap=False) == (newest, 2)


def test_repositories_fill_each_others_gaps(restore, archive):
    archive(repo1=segments(4, 5), repo2=segments(6, 9))
    assert restore._wal_until(CONFIG, backup_of(4), accept_gap=False) == (segments(9, 9)[0], 1)


def test_a_gap_is_named_and_refused(restore, archive):
    archive(repo1=None, repo2=[*segments(4, 6), *segments(8, 9)])
    with pytest.raises(restore.FailedError, match="000000010000000000000007 is missing in every repository") as told:
        restore._wal_until(CONFIG, backup_of(4), accept_gap=False)
    assert "000000010000000000000009" in str(told.value)
    assert restore._wal_until(CONFIG, backup_of(4), accept_gap=True) == (segments(6, 6)[0], 1)


def test_a_backup_without_its_first_wal_is_none(restore, archive):
    archive(repo1=[], repo2=segments(1, 3))
    with pytest.raises(restore.FailedError, match="with which the backup begins"):
        restore._wal_until(CONFIG, backup_of(4), accept_gap=True)


LEFT_AT_10 = {"00000002.history": left_at(0x10 * SEGMENT)}


def test_a_gap_on_the_new_timeline_is_not_filled_by_what_the_old_one_has_left(restore, archive):
    """Recovery follows timeline 2 from segment 10 on, where its own 12 is missing."""
    new = [*segments(0x10, 0x11, timeline=2), *segments(0x13, 0x14, timeline=2)]
    archive(repo1=[], repo2=[*segments(4, 0xF), *new, "00000002.history"], histories=LEFT_AT_10)
    with pytest.raises(restore.FailedError, match="000000020000000000000012 is missing"):
        restore._wal_until(CONFIG, backup_of(4), accept_gap=False)
    archive(repo1=[], repo2=[*segments(4, 0x14), *new, "00000002.history"], histories=LEFT_AT_10)
    with pytest.raises(restore.FailedError, match=r"timeline 2 was begun before .* until 000000010000000000000014"):
        restore._wal_until(CONFIG, backup_of(4), accept_gap=False)
    assert restore._wal_until(CONFIG, backup_of(4), accept_gap=True) == (segments(0x11, 0x11, timeline=2)[0], 2)


def test_where_a_timeline_begins_within_a_segment_that_segment_must_be_its_own(restore, archive):
    """The old one's ends half-way: what the new one wrote after that is only in its own."""
    histories = {"00000002.history": left_at(0x10 * SEGMENT + 0x150)}
    held = [*segments(4, 0x10), *segments(0x11, 0x12, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=held, histories=histories)
    with pytest.raises(restore.FailedError, match="000000020000000000000010 is missing"):
        restore._wal_until(CONFIG, backup_of(4), accept_gap=False)
    archive(repo1=[], repo2=[*segments(4, 0x10), "00000002.history"], histories=histories)
    assert restore._wal_until(CONFIG, backup_of(4), accept_gap=False) == (segments(0x10, 0x10)[0], 2)


def test_what_was_left_behind_before_the_backup_is_no_matter(restore, archive):
    """A loss that was accepted once must not stop the next rebuild, nor lengthen its WAL."""
    held = [*segments(4, 0x20), *segments(0x10, 0x13, timeline=2), "00000002.history"]
    archive(repo1=[], repo2=held, histories=LEFT_AT_10)
    needed = backup_of(0x11, timeline=2)
    assert restore._wal_until(CONFIG, needed, accept_gap=False) == (segments(0x13, 0x13, timeline=2)[0], 2)


@pytest.mark.parametrize(
    ("held", "histories"),
    [
        ([*segments(4, 0x14), "00000002.history"], LEFT_AT_10),
        (segments(0x10, 0x11, timeline=2), {}),
    ],
    ids=["it left before the backup", "its history is gone"],
)
def test_a_newer_timeline_that_does_not_continue_the_backup_is_told(restore, archive, held, histories):
    archive(repo1=[], repo2=[*segments(0x12, 0x14), *held], histories=histories)
    with pytest.raises(restore.FailedError, match="timeline 2 does not continue the newest backup"):
        restore._wal_until(CONFIG, backup_of(0x12), accept_gap=False)
    assert restore._wal_until(CONFIG, backup_of(0x12), accept_gap=True) == (segments(0x14, 0x14)[0], 1)


# --- restore: what an attempt has left ------------------------------------------------------------------------------


@pytest.fixture
def place(restore, monkeypatch, tmp_path):
    """A machine whose data directory, marks and repositories are the test's; notes the programs that were run."""
    monkeypatch.setattr(restore, "STATE", tmp_path / "state")
    monkeypatch.setattr(restore, "UNFINISHED", tmp_path / "state/restore-unfinished")
    monkeypatch.setattr(restore, "OUTCOME", tmp_path / "state/restore.json")
    monkeypatch.setattr(restore, "DATA", tmp_path / "main")
    monkeypatch.setattr(restore, "settings", lambda: CONFIG)
    monkeypatch.setattr(restore, "repository", lambda stanza, repo: {})
    monkeypatch.setattr(restore, "control_data", lambda *_: {"Database system identifier": "7"})
    restore.asked = []

    def run(argv, *_, **__):
        restore.asked.append(" ".join(argv))
        if argv[0] == "find":
            subprocess.run(argv, check=True)

    monkeypatch.setattr(restore, "run", run)
    monkeypatch.setattr(restore, "pgbackrest", lambda *words, **_: restore.asked.append(" ".join(words)))
    monkeypatch.setattr(restore, "sql", lambda text, *_: restore.asked.append(text))
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
    with pytest.raises(place.FailedError, match=r"minipc rebuild.*Nothing was changed") as error:
        place.main("refuse")
    assert error.value.code == place.EXIT_REFUSED
    assert (place.DATA / "PG_VERSION").exists()
    assert place.asked == []


def test_half_a_copy_is_removed_and_the_restore_begins_anew(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("copying")
    assert place.main("restore") == 0
    assert not any(place.DATA.iterdir())
    assert place.asked[-1] == "restored"


def test_what_may_be_a_database_is_moved_aside(place, monkeypatch):
    """pgBackRest writes pg_control last."""
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("copying")
    (place.DATA / "global/pg_control").touch()
    assert place.main("restore") == 0
    (aside,) = place.DATA.parent.glob("main.aside-*")
    assert (aside / "PG_VERSION").exists()
    assert place.asked == ["restored"]


def test_a_server_on_half_a_copy_is_left_alone(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("copying")
    (place.DATA / "postmaster.pid").touch()
    with pytest.raises(place.FailedError, match="a server uses") as error:
        place.main("restore")
    assert error.value.code == place.EXIT_REFUSED
    assert (place.DATA / "PG_VERSION").exists()
    assert place.asked == []


def test_restored_files_are_kept_when_only_the_stanza_is_missing(place):
    """The off-site machine went away in between; meanwhile the server may have begun to take writes."""
    place.UNFINISHED.write_text("without-stanza")
    (place.DATA / "global/pg_control").touch()
    (place.DATA / "postmaster.pid").touch()
    assert place.main("restore") == 0
    assert place.asked == ["--stanza=main --no-online stanza-create"]
    assert not place.UNFINISHED.exists()
    assert (place.DATA / "PG_VERSION").exists()


def test_restored_files_that_somebody_took_away_are_restored_again(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("without-stanza")
    subprocess.run(["rm", "-r", place.DATA], check=True)
    assert place.main("restore") == 0
    assert place.asked == ["restored"]


def test_a_recovery_that_ended_early_is_restored_anew(place, monkeypatch):
    backed_up(place, monkeypatch)
    place.UNFINISHED.write_text("ended-early")
    (place.DATA / "global/pg_control").touch()
    assert place.main("restore") == 0
    assert place.asked == ["systemctl stop postgresql@17-main", "restored"]
    assert len(list(place.DATA.parent.glob("main.aside-*"))) == 1


@pytest.mark.parametrize("mode", ["restore", "restore-incomplete"])
def test_a_rebuild_without_any_backup_makes_no_database(place, mode):
    """The repository may have been wiped: a new database would be the end of it."""
    subprocess.run(["rm", "-r", place.DATA], check=True)
    with pytest.raises(place.FailedError, match="offsite-restore-copy") as error:
        place.main(mode)
    assert error.value.code == place.EXIT_REFUSED
    assert place.main("refuse") == 0, "outside a rebuild, a first database may be made"


# --- restore: where recovery ended ----------------------------------------------------------------------------------


def ended(place, until, *positions):
    """A restored server that left its timelines there; `until` is the newest segment that there was."""
    place.OUTCOME.write_text(json.dumps({"wal_until": until}))
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
    assert place.main("recovered", "restore") == 0
    assert [line.split()[-1] for step in place.asked for line in step.splitlines()] == [
        "archive_command;",
        "recovery_target_timeline;",
        "pg_reload_conf();",
        "postgresql@17-main",
        "restore_command;",
        "pg_reload_conf();",
    ]
    assert not place.UNFINISHED.exists()


def test_a_recovery_that_ended_too_early_archives_nothing(place):
    """Its timeline would be the one that the next restore follows."""
    ended(place, segments(0xE, 0xE)[0], 9 * SEGMENT)
    with pytest.raises(place.FailedError, match="ended at 0/9000000, before WAL segment 00000001000000000000000E"):
        place.main("recovered", "restore")
    assert place.asked == []
    assert place.UNFINISHED.read_text() == "ended-early"


def test_the_loss_can_be_accepted(place):
    ended(place, segments(0xE, 0xE)[0], 9 * SEGMENT)
    assert place.main("recovered", "restore-incomplete") == 0
    assert "RESET archive_command" in place.asked[0]


def test_a_restored_server_archives_nothing_yet(place):
    """The last setting of a name counts: pgBackRest has written its own before."""
    (place.DATA / "postgresql.auto.conf").write_text("restore_command = 'pgbackrest …'\n")
    place._hold(CONFIG, 2)
    _, command, *others = (place.DATA / "postgresql.auto.conf").read_text().splitlines()
    assert others == ["recovery_target_timeline = '2'", "archive_command = ''"]
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
def test_wal_that_could_not_be_asked_for_is_not_the_end_of_it(restore, tmp_path, together, repo1, repo2, code):
    """PostgreSQL stops above 125, and promotes after anything else."""
    program = tmp_path / "pgbackrest"
    program.write_text(f"""#!/bin/sh
case "$*" in *--repo=1*) exit {repo1};; *--repo=2*) exit {repo2};; *) exit {together};; esac
""")
    program.chmod(0o755)
    command = restore.RESTORE_COMMAND.format(stanza="main", repos="1 2").replace("%f", "name").replace("%p", "path")
    path = f"{tmp_path}:/usr/bin:/bin"
    assert subprocess.run(["sh", "-c", command], env={"PATH": path}, check=False).returncode == code


@pytest.mark.parametrize(
    "said",
    [
        "restore ended with 29: ERROR: [029]: unable to decompress",
        "ERROR: [026]: error restoring 'base/1/2': actual checksum 'a' does not match expected checksum 'b'",
    ],
)
def test_a_damaged_backup_is_called_that(restore, monkeypatch, said):
    def pgbackrest(*_):
        raise restore.FailedError(said)

    monkeypatch.setattr(restore, "pgbackrest", pgbackrest)
    with pytest.raises(restore.FailedError, match=r"the backup 2026F in repo2 is damaged.*ERROR"):
        restore._copy("main", 2, "2026F")
