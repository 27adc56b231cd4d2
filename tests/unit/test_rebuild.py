"""What a rebuild decides without a machine: is there a database, did everything come back."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from minipc import config
from minipc.config.service import Service
from minipc.core.environment import LAB
from minipc.core.errors import MinipcError, RefusedError
from minipc.evidence.run import PhaseFailedError, Run
from minipc.remote.inventory import Target
from minipc.remote.queries import reason
from minipc.secrets import Secret
from minipc.secrets.ed25519 import public_key
from minipc.secrets.generate import ssh_private_key
from playbooks import rebuild, restored_data

IDENTIFIER = "7574901234567890123"


class Machine:
    """Answers what `begin` asks, and remembers what it was told to do."""

    def __init__(self, *, database: str = "", unfinished: bool = False) -> None:
        self.database = database
        self.unfinished = unfinished
        self.at = ""
        self.done: list[str] = []

    def on(self, _target: Target, command: str, **_: object) -> str:
        if "|| echo there" in command:
            return "there" if self.unfinished else ""
        if "PG_VERSION" in command:
            return self.database
        if "rebuild-at 2>" in command:
            return self.at
        self.done.append(command.split()[0])
        return ""


@pytest.fixture
def begin(monkeypatch):
    def run(machine: Machine, replace: str = "", at: float | None = None) -> list[str]:
        monkeypatch.setattr(rebuild, "on", machine.on)
        told: list[str] = []
        rebuild.begin(Target("mini", {}, config.load("lab")), replace, told.append, at)
        return told

    return run


def test_a_blank_machine_is_marked(begin):
    machine = Machine()
    begin(machine)
    assert machine.done == ["install"]


@pytest.mark.parametrize("typed", ["", "7574901234567890124", "yes"])
def test_a_database_is_refused_unless_its_identifier_is_typed(begin, typed):
    machine = Machine(database=IDENTIFIER)
    with pytest.raises(RefusedError, match=IDENTIFIER):
        begin(machine, typed)
    assert machine.done == []


def test_with_its_identifier_it_is_moved_aside(begin):
    machine = Machine(database=IDENTIFIER)
    shut, aside = begin(machine, IDENTIFIER)
    assert machine.done == ["set", "systemctl", "install"], "the door first: nobody writes into what is not verified"
    assert "the public ports stay closed" in shut
    assert "/var/lib/postgresql/17/main.aside-" in aside


def test_a_return_to_a_moment_moves_files_aside_too(begin):
    machine = Machine(database=IDENTIFIER)
    told = begin(machine, IDENTIFIER, 1000.5)
    assert machine.done == ["set", "systemctl", "set", "install"]
    assert "volumes and queues are in /var/lib/minipc/aside-" in told[-1]


@pytest.mark.parametrize(("begun", "asked"), [("", 1000.5), ("1000.500000", None), ("1000.500000", 2000.0)])
def test_a_rebuild_that_goes_on_keeps_its_moment(begin, begun, asked):
    machine = Machine(unfinished=True)
    machine.at = begun
    with pytest.raises(RefusedError, match="the rebuild that was begun returns to"):
        begin(machine, "", asked)
    assert machine.done == []
    machine.at = "" if asked is None else f"{asked:.6f}"
    assert "continuing" in begin(machine, "", asked)[0]


def test_volumes_and_queues_are_kept_and_their_first_backups_are_due_again(tmp_path, monkeypatch):
    volume, queue = tmp_path / "volumes/shop/uploads", tmp_path / "queues/shop"
    for folder in (volume, queue):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    for name in ("OUTCOMES", "RESTORED_PATHS", "RESTORED_VOLUMES"):
        monkeypatch.setattr(rebuild.backup_state, name, tmp_path / name)
        (tmp_path / name).touch()
    monkeypatch.setattr(rebuild, "volumes_of", lambda _: [SimpleNamespace(path=volume)])
    monkeypatch.setattr(rebuild, "queues", lambda _: [SimpleNamespace(unit="q.service", folder=str(queue))])
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/done\n")
    (tmp_path / "systemctl").chmod(0o755)
    aside = tmp_path / "aside"
    script = rebuild.files_aside(config.load("lab"), str(aside))
    subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    assert (tmp_path / "done").read_text() == "stop q.service redis-server.service\n"
    for folder in (volume, queue):
        assert not folder.exists()
        assert (aside / str(folder).lstrip("/") / "file").read_text() == folder.name
    assert not (tmp_path / "OUTCOMES").exists()
    assert aside.stat().st_mode & 0o777 == 0o700


def test_what_writes_is_stopped_and_stays_so_after_a_reboot(tmp_path):
    """The script against a systemd that knows some units; K3s is not there."""
    units = (
        "caddy.service|minipc-odd-web.service|minipc-odd-nightly.timer|minipc-heartbeat.timer|minipc-other-x.service"
    )
    program = tmp_path / "systemctl"
    program.write_text(f"""#!/bin/sh
case "$1" in
--quiet) exit 3;;
list-units) shift; for pattern; do echo "{units}" | tr '|' '\\n' | while read -r unit; do
    case "$unit" in $pattern) echo "$unit loaded active";; esac; done; done;;
*) echo "$@" >> {tmp_path}/done;;
esac
""")
    program.chmod(0o755)
    script = rebuild.stop_writers([SimpleNamespace(name="odd")]).replace("/etc/containers", f"{tmp_path}/containers")
    quadlets = tmp_path / "containers/systemd"
    quadlets.mkdir(parents=True)
    for name in ("minipc-odd-web.kube", "minipc-other-x.kube"):
        (quadlets / name).touch()
    subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    assert (tmp_path / "done").read_text().splitlines() == [
        "disable --quiet --now caddy.service",
        "disable --quiet --now minipc-heartbeat.timer",
        "disable --quiet --now minipc-odd-nightly.timer",
        "stop minipc-odd-web.service",
        "daemon-reload",
    ]
    assert [path.name for path in quadlets.iterdir()] == ["minipc-other-x.kube"]


def test_the_writers_of_no_service_are_a_valid_script():
    subprocess.run(["sh", "-n", "-c", rebuild.stop_writers([])], check=True)


def test_a_rebuild_that_was_cut_off_goes_on_and_moves_nothing_aside(begin):
    """The restored database has the identifier of the one that was moved aside."""
    machine = Machine(database=IDENTIFIER, unfinished=True)
    assert "continuing an earlier rebuild" in begin(machine, IDENTIFIER)[0]
    assert machine.done == []


@pytest.fixture
def fence(monkeypatch, tmp_path):
    """Runs `fence` on a machine whose mark holds something; returns what was done, and what the mark holds then."""
    settings = config.load("lab")
    keys = {"new": ssh_private_key(), "own": ssh_private_key()}

    def run(mark: str | None) -> tuple[list[str], str | None]:
        done: list[str] = []
        own = public_key(Secret("backups.sftp_key", keys["own"]))
        state = {"store": keys["own"], "mark": own if mark == "own" else mark}

        def on(_: Target, command: str, stdin: str = "", **__: object) -> str:
            if command.startswith("cat"):
                return state["mark"] or ""
            if "cat >" in command and state["mark"] is not None:
                state["mark"] = stdin.strip()
            return ""

        def renew(*_: object) -> None:
            done.append("renew")
            state["store"] = keys["new"]

        store = SimpleNamespace(get=lambda name: Secret(name, state["store"]))
        monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
        monkeypatch.setattr(rebuild, "on", on)
        monkeypatch.setattr(rebuild, "renew", renew)
        monkeypatch.setattr(rebuild, "open_store", lambda _: store)
        monkeypatch.setattr(rebuild, "converge", lambda *_, **__: done.append("converge"))
        monkeypatch.setattr(rebuild, "offsite_target", lambda *_: Target("offsite", {}, settings))
        rebuild.fence(Run("rebuild"), LAB, Target("mini", {}, settings))
        told = {public_key(Secret("backups.sftp_key", key)): name for name, key in keys.items()}
        return done, told.get(state["mark"] or "", state["mark"])

    return run


def test_the_fence_makes_a_new_key_and_notes_it(fence):
    assert fence("") == (["renew", "converge"], "new")


def test_a_resumed_rebuild_keeps_the_key_that_it_made(fence):
    """Another one would revoke the one with which the machine is reading its WAL."""
    assert fence("own") == (["converge"], "own")


def test_the_key_of_the_lost_machine_is_never_kept(fence):
    """The rebuild was cut off before the mark had the new one, or goes on from a computer that has not got it."""
    assert fence("ssh-ed25519 another") == (["renew", "converge"], "new")


def test_a_machine_that_is_not_being_rebuilt_gets_no_mark(fence):
    assert fence(None) == (["renew", "converge"], None)


DAY = 86400.0


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
    return Run("rebuild")


def test_data_within_the_budget_is_the_rpos_bound(run):
    restored_data.judge_age(run, 90.0, DAY, accept=False)
    assert (run.rpo_seconds, run.rpo_budget_seconds) == (90.0, DAY)


@pytest.mark.parametrize(
    ("age", "told"), [(7 * DAY, "the last heartbeat was 168 h"), (None, "no heartbeat was restored")]
)
def test_old_data_is_not_let_in_unless_it_is_accepted(run, age, told):
    with pytest.raises(MinipcError, match=f"{told}.*--accept-old-data"):
        restored_data.judge_age(run, age, DAY, accept=False)
    restored_data.judge_age(run, age, DAY, accept=True)
    assert (run.rpo_seconds, run.rpo_budget_seconds) == (age, None), "known, and no longer judged"


def test_the_age_is_that_of_the_lost_machines_last_heartbeat(monkeypatch):
    """Not of those that the new one has added since."""
    asked = []
    outcome = '{"repo": 1, "at": 1000.5, "label": "F", "seconds": 1, "bytes": 9}'
    monkeypatch.setattr(restored_data, "on", lambda _, command: outcome if "restore.json" in command else "")
    monkeypatch.setattr(restored_data, "query", lambda target, database, sql: asked.append(sql) or "12.5")
    monkeypatch.setattr(restored_data, "tables", lambda *_: set())
    assert restored_data.restored(Target("mini", {}, config.load("lab"))).age == 12.5
    assert "WHERE at <= to_timestamp(1000.5)" in asked[-1]


ODD = Service.model_validate(
    {
        "name": "odd",
        "image": "example.org/odd",
        "processes": {"web": {}},
        "postgres": {"database": "odd"},
        "data_classes": {"must recover": {"Users": "createdAt", "billing.invoices": None}},
    }
)


def count_odd(monkeypatch, tables):
    monkeypatch.setattr(restored_data, "tables", lambda *_: tables)
    monkeypatch.setattr(restored_data, "count", lambda *_: 3)
    return restored_data.count_service(Target("mini", {}, config.load("lab")), ODD)


def test_a_missing_table_is_named_and_stops_nothing(monkeypatch):
    (counted,), gaps = count_odd(monkeypatch, {("public", "Users"), ("public", "log")})
    assert (counted.verdict, counted.rows_found) == ("fail", 3)
    assert "the database odd has no table billing.invoices" in counted.detail
    assert gaps == [("odd: tables in no data class", "nothing is promised for log")]


def test_a_service_that_was_never_released_has_nothing_to_count(monkeypatch):
    assert count_odd(monkeypatch, set()) == (
        [],
        [("odd: restored rows", "its database has no tables: it was never released")],
    )


def test_psqls_error_is_told_and_not_the_mark_below_it():
    said = 'ERROR:  relation "public.lost" does not exist\nLINE 1: SELECT count(*) FROM "public"."lost"\n      ^\n'
    assert reason(said) == 'ERROR: relation "public.lost" does not exist'
    assert reason("first\nlast\n") == "last"
    assert reason("") == "no reason given"


class OfTheMachine:
    """A side that answers a status for each domain."""

    def __init__(self, **codes):
        self.codes, self.resolver, self.ipv4 = codes, (), "192.0.2.1"

    def http_status(self, domain, path, address):
        assert (path, address) == ("/ready", "192.0.2.1")
        return self.codes[domain.partition(".")[0]]


def served(name, **ingress):
    values = {"domains": [f"{name}.example.org"], "node_port": 30080} | ingress
    health = {"live": "/live", "ready": "/ready"}
    return Service.model_validate(
        {"name": name, "image": "x", "processes": {"web": {"port": 80}}, "ingress": values, "health": health}
    )


@pytest.mark.parametrize(
    ("ingress", "outside", "inside", "answer"),
    [
        ({}, "200", "", "ready"),
        ({}, "503", "", "https://odd.example.org/ready answers 503"),
        ({"authentication": {"basic": {"user": "u"}}}, "401", "200", "ready"),
        ({"authentication": {"basic": {"user": "u"}}}, "401", "500", "/ready answers 500 on the machine"),
        ({"authentication": {"basic": {"user": "u"}}}, "502", "200", "https://odd.example.org answers 502"),
        ({"audience": "operator"}, "000", "200", "ready"),
    ],
)
def test_the_end_of_a_rebuild_is_the_ready_path_of_each_service(monkeypatch, ingress, outside, inside, answer):
    monkeypatch.setattr(rebuild, "on", lambda *_: inside)
    target = SimpleNamespace(side=lambda _: OfTheMachine(odd=outside))
    assert rebuild.readiness(target, served("odd", **ingress)) == answer


def test_all_services_that_do_not_come_back_are_named(monkeypatch, run):
    declared = [served("good"), served("bad"), served("worse")]
    settings = SimpleNamespace(services=SimpleNamespace(declared=declared))
    target = SimpleNamespace(
        settings=settings, alias="mini", side=lambda _: OfTheMachine(good="200", bad="503", worse="000")
    )
    with pytest.raises(PhaseFailedError, match=r"bad: https://bad\S+ answers 503; worse: .* answers 000"):
        rebuild.public_name(run, target, limit_s=0)


def test_a_service_that_prevents_the_last_converge_does_not_cost_backups_and_monitoring(monkeypatch, run):
    converged, done = [], []

    def converge(environment, files, **_):
        converged.append([path.rpartition("/")[2] for path in files])
        if converged[-1] == ["site.py"]:
            raise MinipcError("the service does not start", "")

    monkeypatch.setattr(rebuild, "converge", converge)
    monkeypatch.setattr(rebuild, "on", lambda _, command: done.append(command))
    monkeypatch.setattr(rebuild, "versions", lambda _: {})
    failures = []
    rebuild.backups_again(run, LAB, Target("mini", {}, config.load("lab")), failures)
    assert [str(each.what) for each in failures] == ["the service does not start"]
    assert {"backups.py", "prometheus.py", "alertmanager.py"} <= set(converged[1])
    assert not {"services.py", "workload.py", "edge.py", "argocd.py"} & set(converged[1])
    assert done == [
        f"rm -f {rebuild.UNFINISHED} /var/lib/minipc/rebuild-without-state {rebuild.backup_state.REBUILD_AT}"
    ]
