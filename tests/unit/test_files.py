"""Placing files: rendered before anything changes, checked before anything is replaced, atomic."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile

import pytest

from minipc.core.errors import ConfigError
from minipc.core.paths import cache_dir
from minipc.pyinfra_ext.facts.files import FileState, FileStates
from minipc.pyinfra_ext.operations import files
from minipc.pyinfra_ext.operations.files import Absent, Content, Directory, File, SecretFile, digest, render


@pytest.fixture
def templates(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    folder = tmp_path / "templates" / "demo"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs the script that a machine would run."""
    stage = tmp_path / "stage"

    def run(entries):
        stage.mkdir()
        packed = [entry for entry in entries if isinstance(entry, File)]
        (stage / "files.tar").write_bytes(files._pack(packed))
        script = files._install_script(entries, str(stage))
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=20)

    return run


def here(content: bytes, path, **more) -> File:
    import grp
    import pwd

    owner, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    return Content(content, str(path), owner=owner, group=group, **more)


def test_an_undefined_variable_is_told_with_template_and_target(templates):
    (templates / "a.conf.j2").write_text("port {{ prot }}\n")
    told = r"templates/demo/a\.conf\.j2 for /etc/a\.conf: UndefinedError: 'prot' is undefined"
    with pytest.raises(ConfigError, match=told):
        render("demo", File("a.conf.j2", "/etc/a.conf"), {"port": 1})


def test_a_syntax_error_is_told_with_its_line(templates):
    (templates / "a.conf.j2").write_text("one\n{% if %}\n")
    with pytest.raises(ConfigError, match=r"a\.conf\.j2 line 2 for /etc/a\.conf"):
        render("demo", File("a.conf.j2", "/etc/a.conf"), {})


def test_the_digest_follows_content_mode_and_owner():
    base = digest([Content(b"a", "/x")])
    assert base == digest([Content(b"a", "/x")])
    others = [Content(b"b", "/x"), Content(b"a", "/x", mode="600"), Content(b"a", "/x", owner="redis"), Absent("/x")]
    assert base not in {digest([other]) for other in others}


def test_files_are_placed_with_mode_and_leave_nothing_behind(tmp_path, install):
    target = tmp_path / "etc" / "a.conf"
    done = install([here(b"new\n", target, mode="640")])
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == b"new\n"
    assert oct(target.stat().st_mode & 0o777) == "0o640"
    assert [path.name for path in target.parent.iterdir()] == ["a.conf"]
    assert not (tmp_path / "stage").exists()


def test_a_refused_check_replaces_nothing_and_says_why(tmp_path, install):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("old")
    bad.write_text("old")
    done = install([here(b"new", good), here(b"new", bad, check="echo 'line 1: bad word' && grep -q never {path}")])
    assert done.returncode == 1
    assert f"the check of {bad} failed, nothing was replaced" in done.stderr
    assert "line 1: bad word" in done.stderr
    assert (good.read_text(), bad.read_text()) == ("old", "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]


def test_a_check_sees_the_candidate(tmp_path, install):
    target = tmp_path / "a"
    assert install([here(b"wanted", target, check="grep -q wanted {path}")]).returncode == 0
    assert target.read_text() == "wanted"


def test_names_with_spaces_and_quotes(tmp_path, install):
    target = tmp_path / "it's a file"
    assert install([here(b"x", target, check="test -f {path}")]).returncode == 0
    assert target.read_bytes() == b"x"


def test_a_file_that_must_go_goes(tmp_path, install):
    target = tmp_path / "a"
    target.write_text("x")
    assert install([Absent(str(target))]).returncode == 0
    assert not target.exists()


def test_the_upload_is_readable_by_nobody_else(tmp_path):
    with tarfile.open(fileobj=io.BytesIO(files._pack([SecretFile("", "/x", content=b"s")]))) as packed:
        assert [member.mode for member in packed] == [0o600]


def test_facts_of_many_files_in_one_command(tmp_path):
    (tmp_path / "a b").write_text("x")
    (tmp_path / "empty").write_text("")
    (tmp_path / "dir").mkdir(mode=0o750)
    paths = [str(tmp_path / name) for name in ("a b", "empty", "dir", "missing")]
    output = subprocess.run(["sh", "-c", FileStates().command(paths)], capture_output=True, text=True, timeout=20)
    states = FileStates().process(output.stdout.splitlines())
    assert set(states) == {paths[0], paths[1], paths[2]}
    assert states[paths[0]].sha256 == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert states[paths[1]].kind == "regular file"
    assert (states[paths[2]].kind, states[paths[2]].mode) == ("directory", "750")


X_SHA256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_what_is_as_wanted():
    wanted = Content(b"x", "/x", mode="640")
    state = FileState("regular file", "640", "root", "root", X_SHA256)
    assert files._is_as_wanted(wanted, state)
    for different in (
        None,
        FileState("regular file", "644", "root", "root", state.sha256),
        FileState("regular file", "640", "redis", "root", state.sha256),
        FileState("regular file", "640", "root", "root", "0" * 64),
        FileState("symbolic link", "640", "root", "root", state.sha256),
    ):
        assert not files._is_as_wanted(wanted, different)
    assert files._is_as_wanted(Absent("/x"), None)
    assert not files._is_as_wanted(Absent("/x"), state)
    assert files._is_as_wanted(Directory("/d"), FileState("directory", "755", "root", "root"))


def test_a_home_directory_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("not a folder")
    monkeypatch.delenv("MINIPC_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"home/\.cache/minipc cannot be created: Not a directory") as refused:
        cache_dir()
    assert refused.value.next_step == "set MINIPC_CACHE_DIR to a folder that you may write"
