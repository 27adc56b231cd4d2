"""The watchdog of Redis: an instance that hangs is killed; one that answers, or does not run, is left alone."""

from __future__ import annotations

import socket
import threading

import pytest

from minipc_machine import redis_alive, schema
from minipc_machine.redis_alive import AliveSettings, Instance

HUNG = "no answer"


@pytest.fixture
def killed(monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(redis_alive, "run", lambda argv, **_: found.append(argv[-1]))
    monkeypatch.setattr(redis_alive, "PAUSE_S", 0)
    monkeypatch.setattr(redis_alive, "LIMIT_S", 0.2)
    return found


@pytest.fixture
def ask(tmp_path, monkeypatch, killed):
    """Return a function that runs the watchdog against a server that gives these answers, one a command."""

    def run(answers: list[str] | None, password: str = "pw") -> list[bytes]:
        heard: list[bytes] = []
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        if answers is None:
            server.close()
        else:
            threading.Thread(target=_serve, args=(server, answers, heard), daemon=True).start()
        path = tmp_path / "settings.json"
        path.write_text(schema.dump(AliveSettings("monitoring", password, [Instance("redis@x.service", port)])))
        monkeypatch.setattr(redis_alive, "SETTINGS", path)
        assert redis_alive.main([]) == 0
        return heard

    return run


def _serve(server, answers, heard):
    while True:
        connection, _ = server.accept()
        for answer in answers:
            heard.append(connection.recv(4096))
            if answer == HUNG:
                threading.Event().wait(1)
            connection.sendall(answer.encode() + b"\r\n")
        connection.close()


@pytest.mark.parametrize(
    ("answers", "hangs"),
    [
        (["+OK", "+PONG"], False),
        (["+OK", "-BUSY Redis is busy running a script."], True),
        ([HUNG], True),
        (["-WRONGPASS invalid username-password pair", "-NOAUTH Authentication required."], False),
        (["+OK", "-LOADING Redis is loading the dataset in memory"], False),
        (None, False),
    ],
    ids=["well", "endless script", "stopped", "another password", "loading", "not running"],
)
def test_only_an_instance_that_hangs_is_killed(ask, killed, answers, hangs):
    ask(answers)
    assert killed == (["redis@x.service"] if hangs else [])


def test_a_password_is_sent_as_it_is(ask):
    assert ask(["+OK", "+PONG"], 'a b"\\ü\n')[0].endswith(b'\r\n$8\r\na b"\\\xc3\xbc\n\r\n')
