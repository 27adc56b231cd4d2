"""The programs that run on the machine: what can be known without one."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from minipc.config.load import group_data
from minipc.paths import ROOT

FOLDER = ROOT / "templates/backups"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
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


def test_one_repository_that_fails_does_not_keep_the_next_from_being_tried(backup, common, monkeypatch):
    def database(config, repo, kind):
        if repo == 1:
            raise common.FailedError("disk full")
        return {"label": kind, "size": 1}

    monkeypatch.setattr(backup, "database", database)
    assert backup._take({"repos": [1, 2], "paths": []}, "diff") == [False, True]


# --- drill ----------------------------------------------------------------------------------------------------------


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
    "path", sorted([*FOLDER.glob("*.sh"), *(ROOT / "templates/offsite").glob("*.sh")]), ids=lambda path: path.name
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
