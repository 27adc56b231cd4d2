"""Redis queues: which instance a service gets, and how its copy is loaded."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from minipc import config
from minipc.config.service import Service
from minipc.core import templating
from minipc.core.paths import ROOT
from minipc.secrets import Secret
from minipc.services.queues import queues
from minipc_machine import load_queue, processes, queue_drill
from minipc_machine.program import FailedError
from minipc_machine.repositories import Snapshot


def service(name, **redis):
    return Service.model_validate({"name": name, "image": "x", "processes": {"web": {}}, "redis": redis})


@pytest.fixture
def settings():
    found = config.load("lab")
    declared = (service("a", kind="cache"), service("b", kind="queue"), service("c", kind="queue", keys=["c:*"]))
    return found.model_copy(update={"services": found.services.model_copy(update={"declared": declared})})


def test_each_queue_is_an_instance_with_a_port(settings):
    b, c = queues(settings)
    assert (b.service, b.port, b.keys) == ("b", settings.redis.port + 1, ["*"])
    assert (c.service, c.port, c.keys) == ("c", settings.redis.port + 2, ["c:*"])
    assert b.unit == "redis-server@queue-b.service"


def test_a_queue_never_forgets_and_its_user_administers_nothing(settings):
    monitoring = next(user for user in settings.redis.users if user.name == "monitoring")
    values = {"name": "b", "port": 6380, "folder": "/f", "memory_mb": 64, "keys": ["*"], "host": settings.host}
    values |= {
        "password": Secret("redis.password.b", "pw"),
        "monitoring": monitoring,
        "monitoring_password": Secret("redis.password.monitoring", "mpw"),
    }
    templates = templating.environment(ROOT / "templates/redis")
    text = templates.get_template("queue.conf.j2").render(values)
    assert {"maxmemory-policy noeviction", "appendonly yes", "appendfsync always"} <= set(text.splitlines())
    users = templates.get_template("queue.acl.j2").render(values).splitlines()
    assert users[0] == "user default off"
    assert "user b on >pw ~* &* +@all -@dangerous -@admin +info" in users


INFO = "aof_enabled:1\r\naof_rewrite_in_progress:{}\r\naof_rewrite_scheduled:0\r\naof_last_bgrewrite_status:{}\r\n"


@pytest.mark.parametrize(("running", "status", "done"), [(0, "ok", True), (1, "ok", False), (0, "err", False)])
def test_the_append_only_file_is_complete_when_redis_says_so(running, status, done):
    assert load_queue._written(INFO.format(running, status)) is done


class Restic:
    """A backup with the copy of a queue."""

    def __init__(self, copy: bytes | None) -> None:
        self.copy = copy

    def snapshots(self, *_: object) -> list[Snapshot]:
        return [Snapshot("id", "short", "", paths) for paths in (["/q/a"], ["/elsewhere"])]

    def restic(self, *words: object) -> str:
        return "/q/a\n" if self.copy is None else "/q/a\n/q/a/dump.rdb\n"

    def restic_output(self, *words: object) -> nullcontext[io.BytesIO]:
        assert words[1:] == ("dump", "id", "/q/a/dump.rdb")
        return nullcontext(io.BytesIO(self.copy or b""))


@pytest.fixture
def in_backup(monkeypatch):
    # Redis reads as its own account, which may not enter the folders of pytest.
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        monkeypatch.setattr(queue_drill, "SCRATCH", scratch)
        yield partial(_put, monkeypatch)


def _put(monkeypatch: pytest.MonkeyPatch, copy: bytes | None) -> None:
    for name in ("snapshots", "restic", "restic_output"):
        monkeypatch.setattr(queue_drill, name, getattr(Restic(copy), name))


def test_a_queue_without_a_copy_or_a_snapshot_is_not_counted(in_backup):
    in_backup(None)
    assert queue_drill.count(None, "/q/a") is None
    with pytest.raises(FailedError, match="there is no snapshot of it"):
        queue_drill.count(None, "/q/b")


needs_redis = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("redis-server"), reason="needs root and redis-server; tests/lab has both"
)


@needs_redis
def test_the_keys_of_a_copy_are_counted_and_a_damaged_one_is_refused(in_backup, monkeypatch):
    made = Path(queue_drill.SCRATCH) / "made"
    made.mkdir()
    shutil.chown(made, "redis", "redis")
    with load_queue.serve(made) as ask:
        processes.run([*ask, "mset", "a", "1", "b", "2"])
        processes.run([*ask, "save"])
    copy = (made / "dump.rdb").read_bytes()
    in_backup(copy)
    assert queue_drill.count(None, "/q/a") == ("short", 2)
    in_backup(copy[:-12])
    monkeypatch.setattr(load_queue, "LIMIT_S", 1)
    with pytest.raises(FailedError, match="redis-server"):
        queue_drill.count(None, "/q/a")
    assert not list(Path(queue_drill.SCRATCH).glob("queue-drill-*"))


def test_without_a_copy_the_append_only_file_stays(tmp_path):
    (tmp_path / "appendonlydir").mkdir()
    load_queue.main([str(tmp_path)])
    assert (tmp_path / "appendonlydir").exists()
    with pytest.raises(FailedError, match="usage"):
        load_queue.main([])
