"""The shell that stays open. `ssh` is a stand-in here: it runs the shell on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minipc.core.errors import CouldNotVerifyError
from minipc.remote.persistent_shell import RemoteShell


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteShell]:
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho started >>{tmp_path}/starts\nfor command; do :; done\nexec sh -c "$command"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    opened = RemoteShell(tmp_path / "config", "mini")
    yield opened
    opened.close()


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text().splitlines())


def test_one_shell_answers_one_command_after_another(shell: RemoteShell, tmp_path: Path) -> None:
    assert [shell.run(f"echo {number}").stdout for number in range(3)] == [b"0\n", b"1\n", b"2\n"]
    assert starts(tmp_path) == 1


@pytest.mark.parametrize(
    ("command", "output", "errors", "code"),
    [
        ("exit 7", b"", b"", 7),
        ("printf x; printf y >&2; false", b"x", b"y", 1),
        ("printf 'a\\n\\n'", b"a\n\n", b"", 0),
        ('echo "it\'s"; cd /tmp; variable=1', b"it's\n", b"", 0),
        ("printf '\\000\\377'", b"\x00\xff", b"", 0),
        ("head -c 300000 /dev/zero", b"\0" * 300000, b"", 0),
        ("if", b"", None, None),
    ],
)
def test_output_errors_and_exit_code_are_those_of_the_command(
    shell: RemoteShell, command: str, output: bytes, errors: bytes | None, code: int | None
) -> None:
    done = shell.run(command)
    assert done.stdout == output
    assert (done.stderr == errors) if errors is not None else b"yntax error" in done.stderr
    assert (done.returncode == code) if code is not None else done.returncode != 0
    assert shell.run("echo ${variable:-none}; pwd").stdout.startswith(b"none\n")


def test_a_command_can_read_nothing_of_what_comes_next(shell: RemoteShell) -> None:
    assert shell.run("cat").stdout == b""


def test_a_long_command_arrives_whole(shell: RemoteShell) -> None:
    assert shell.run(f"printf %s {'x' * 100_000} | wc -c").stdout.strip() == b"100000"


def test_threads_take_turns(shell: RemoteShell, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: shell.run(f"echo {number}; echo {number} >&2"), range(40)))
    assert [each.stdout for each in answers] == [each.stderr for each in answers] == [b"%d\n" % n for n in range(40)]
    assert starts(tmp_path) == 1


def test_a_connection_that_ends_is_named_and_opened_again(shell: RemoteShell, tmp_path: Path) -> None:
    with pytest.raises(CouldNotVerifyError, match="mini: the connection ended: kill"):
        shell.run("kill $PPID")
    assert shell.run("echo back").stdout == b"back\n"
    assert starts(tmp_path) == 2


def test_a_command_that_hangs_is_named(shell: RemoteShell) -> None:
    with pytest.raises(CouldNotVerifyError, match=r"no answer within 0 s: sleep 60"):
        shell.run("sleep 60", timeout_s=0.2)
    assert shell.run("echo back").stdout == b"back\n"
