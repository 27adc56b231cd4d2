"""The benchmark's arithmetic, and that its contestants get the same list of resources."""

from __future__ import annotations

import io
import subprocess
import tarfile

import pytest

from bench import recovery
from bench.ansible import changed_tasks
from bench.checks import without_sharing
from bench.declared import PACKAGES, Operation
from bench.latency import Answer, p95, read_answers
from bench.noop import changed_operations
from bench.playbook import TREE_FILES, pack, playbook
from bench.script import archives, left_out, script
from bench.timing import Sample, Series, alternate, cpu_ratio, ratio, timed
from minipc.config.schema import PostgresDatabase, PostgresRole
from minipc.core.errors import MinipcError
from minipc.evidence.event_stream import PhaseEnd, PhaseStart
from minipc.evidence.run import Run
from minipc.pyinfra_ext.operations import Absent, Content, Directory
from minipc.secrets import Secret


def series(*walls: float) -> Series:
    return Series("x", [Sample(wall, wall / 2) for wall in walls])


def operation(kind: str, component: str = "demo", **arguments) -> Operation:
    return Operation(component, f"do {kind}", kind, arguments)


def unpack(packed: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return tar.getmembers()


CODE = [Content(b"code", f"/opt/demo/{number}.py") for number in range(TREE_FILES)]
OPERATIONS = [
    operation("files.entries_present", entries=[Content(b"early", "/etc/apt/apt.conf.d/90x")]),
    operation(PACKAGES, packages=["b", "a"]),
    operation(PACKAGES, component="other", packages=["a", "c"]),
    operation("server.user", user="demo", home="/opt/demo", system=True),
    operation(
        "files.entries_present",
        entries=[
            Directory("/etc/demo", owner="demo", mode="2750"),
            Content(b"secret {{ x }}", "/etc/demo/conf", owner="demo", group="root", mode="640"),
            Absent("/etc/demo/old"),
        ],
    ),
    operation("files.entries_present", component="code", entries=[Directory("/opt/demo"), *CODE]),
    operation("systemd.units_active", units=["demo.service", "demo.timer"], enabled=True),
    operation("systemd.units_active", units=["rests.service"], enabled=True),
    operation(
        "postgres.access_present",
        port=5432,
        roles=[PostgresRole(name="demo", memberships=["pg_monitor"])],
        databases=[PostgresDatabase(name="demo", owner="demo_owner", runtime="demo", reader="demo_reader")],
        passwords={"demo": Secret("postgres.password.demo", "hunter2-hunter2")},
        extensions=["pg_stat_statements"],
    ),
    operation("magic.unheard_of"),
]


def test_the_ratio_is_taken_round_by_round():
    """Whatever slowed down the second round slowed down both."""
    assert ratio(series(10, 90, 12), series(1, 10, 1)) == 10
    assert cpu_ratio(series(10, 90, 12), series(1, 10, 1)) == 10


def test_a_series_is_summed_up_by_its_median():
    assert (series(1, 9, 2).seconds, series(1, 9, 2).cpu_seconds) == (2, 1)
    assert series(1, 9, 2).spread == "1.00 to 9.00 s"


def test_contestants_take_turns():
    taken = []

    def contestant(name):
        return lambda number: (taken.append(f"{name}{number}"), Sample(1, 1))[1]

    found = alternate({"a": contestant("a"), "b": contestant("b")}, rounds=2)
    assert taken == ["a1", "b1", "a2", "b2"]
    assert [(each.name, len(each.samples)) for each in found] == [("a", 2), ("b", 2)]


def test_a_program_is_timed_with_its_children(tmp_path):
    sample = timed(
        ["sh", "-c", "sh -c 'i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done'"], tmp_path / "log", "no-machine"
    )
    assert sample.cpu_seconds > 0
    assert sample.seconds > 0


def test_a_program_that_fails_is_no_sample(tmp_path):
    with pytest.raises(MinipcError, match=r"ended with 3\n  \| so it goes"):
        timed(["sh", "-c", "echo so it goes; exit 3"], tmp_path / "log", "no-machine")


@pytest.mark.parametrize(("said", "changed"), [("-         -", 0), ("3         -", 3)])
def test_what_pyinfra_changed_is_read_from_its_table(said, changed):
    table = f"    Operation     Hosts   Success   Error   No Change\n    Grand total   44      {said}       44\n"
    assert changed_operations(table) == changed


def test_what_ansible_changed_is_read_from_its_recap():
    assert changed_tasks("m : ok=51   changed=12   unreachable=0    failed=0") == 12


@pytest.mark.parametrize("read", [changed_operations, changed_tasks])
def test_a_run_without_results_is_no_noop(read):
    with pytest.raises(MinipcError):
        read("killed")


def test_connections_are_not_shared_by_the_plain_configuration():
    config = "Host m\n    Port 22\n    ControlMaster auto\n    ControlPath /x\n    ControlPersist 60\n    User root\n"
    assert without_sharing(config) == "Host m\n    Port 22\n    User root\n"


def test_the_playbook_has_a_task_for_everything_but_what_it_does_not_know():
    book = playbook(OPERATIONS, resting={"rests.service"})
    modules = [key.removeprefix("ansible.builtin.") for task in book.tasks for key in task if key.startswith("ansible")]
    copies = ["file", "copy", "file", "file", "unarchive"]
    assert modules == ["copy", "apt", "apt", "user", *copies, "systemd_service", "systemd_service", "command"]
    assert book.left_out == ["demo: do magic.unheard_of"]
    assert book.resources == len(book.tasks) + 3  # loops over role, database and extension, and over two units
    units = [task for task in book.tasks if "ansible.builtin.systemd_service" in task]
    assert [(task["loop"], "state" in task["ansible.builtin.systemd_service"]) for task in units] == [
        (["demo.service", "demo.timer"], True),
        (["rests.service"], False),
    ]


def test_the_playbook_copies_the_same_content_with_the_same_owner_and_mode():
    book = playbook(OPERATIONS)
    items = [item for task in book.tasks if "ansible.builtin.copy" in task for item in task["loop"]]
    conf = next(item for item in items if item["path"] == "/etc/demo/conf")
    assert (conf["owner"], conf["group"], conf["mode"]) == ("demo", "root", "0640")
    assert book.files[conf["src"]] == b"secret {{ x }}"
    assert "hunter2" not in str(book.play())


def test_the_script_is_a_shell_script_in_the_right_order():
    text = script(OPERATIONS)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True, timeout=10)
    steps = [
        "early.tar",
        "apt-get install",
        "useradd",
        "late.tar",
        "rm -f /etc/demo/old",
        "systemctl restart demo.service",
    ]
    assert [text.count(step) for step in steps] == [1] * len(steps)
    assert sorted(steps, key=text.index) == steps
    assert text.split("confold ")[1].splitlines()[0] == "b a c"
    assert "hunter2" not in text
    assert left_out(OPERATIONS) == ["demo: do magic.unheard_of"]


def test_the_script_unpacks_before_packages_only_what_they_need():
    found = {name: [member.name for member in unpack(data)] for name, data in archives(OPERATIONS).items()}
    assert found["early.tar"] == ["etc/apt/apt.conf.d/90x"]
    assert found["late.tar"] == ["etc/demo", "etc/demo/conf", "opt/demo", *(file.path[1:] for file in CODE)]


def test_an_archive_keeps_owner_and_mode():
    packed = pack([Directory("/etc/demo", owner="demo", mode="2750"), *CODE], below="/")
    folder, file = unpack(packed)[:2]
    assert (folder.isdir(), folder.uname, folder.gname, folder.mode) == (True, "demo", "demo", 0o2750)
    assert (file.isreg(), file.uname, file.mode, file.size) == (True, "root", 0o644, 4)


# --- recovery -------------------------------------------------------------------------------------------------------


def test_the_slowest_five_of_a_hundred_are_left_out(tmp_path):
    answers = [Answer(float(n), 0.010 if n < 95 else 9.0, 200) for n in range(100)]
    assert p95(answers[:94]) == 0.010
    assert p95(answers) > 0.010
    with pytest.raises(ValueError, match="too few"):
        p95(answers[:5])


def test_an_answer_that_is_half_written_is_left_out(tmp_path):
    file = tmp_path / "answers"
    file.write_text("1.000 0.010000 200\n2.000 0.020000 0\n3.000 0.0")
    assert read_answers(file) == [Answer(1.0, 0.01, 200), Answer(2.0, 0.02, 0)]


def test_the_shares_of_a_rebuild_end_with_the_public_name(monkeypatch, tmp_path):
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
    run = Run("benchmark")
    for phase, began, ended in (("fill", 1, 90), ("data", 110, 150), ("public name", 150, 200), ("after", 210, 220)):
        run.write(PhaseStart(t=began, phase=phase))
        run.write(PhaseEnd(t=ended, phase=phase, verdict="pass"))
    shares, total = recovery.phases_since(run, 100)
    assert total == 100
    assert [(each.what, each.seconds) for each in shares] == [("data (40%)", 40), ("public name (50%)", 50)]
