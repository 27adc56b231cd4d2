"""Pushing upstream files: verified on the machine, unpacked, renamed into place; pushed again only when needed."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile

import pytest

from minipc.artifacts import Artifact
from minipc.evidence import event_stream
from minipc.evidence.records import observe
from minipc.pyinfra_ext.facts import artifacts as facts
from minipc.pyinfra_ext.facts.artifacts import PushedArtifacts
from minipc.pyinfra_ext.operations import artifacts
from minipc.pyinfra_ext.operations.artifacts import identity, install_script


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o755
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs the script that a machine would run, and what the fact then finds."""
    monkeypatch.setattr(facts, "STAMPS", str(tmp_path / "stamps"))
    monkeypatch.setattr(artifacts, "STAMPS", str(tmp_path / "stamps"))
    path = str(tmp_path / "lib" / "program")

    def run(content, filename="program", member=None, sha256=None, mode="755"):
        stage = tmp_path / "stage"
        stage.mkdir()
        (stage / "file").write_bytes(content)
        found = Artifact(
            name="program",
            arch="amd64",
            origin="locked",
            pinned_version="1",
            filename=filename,
            sha256=sha256 or hashlib.sha256(content).hexdigest(),
        )
        script = install_script(found, path, member, mode, str(stage))
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=20)
        assert not stage.exists(), "the stage is always removed"
        return done, identity(found, path, member, mode)

    return run


@pytest.fixture
def there(tmp_path):
    """What the fact says of the path."""
    path = str(tmp_path / "lib" / "program")

    def look():
        fact = PushedArtifacts()
        done = subprocess.run(["sh", "-c", fact.command([path])], capture_output=True, text=True, timeout=20)
        return fact.process(done.stdout.splitlines()).get(path)

    return look


def test_a_plain_file_gets_its_place_and_mode(install, there, tmp_path):
    assert there() is None
    done, wanted = install(b"#!", mode="750")
    assert done.returncode == 0, done.stderr
    program = tmp_path / "lib" / "program"
    assert (program.read_bytes(), program.stat().st_mode & 0o777) == (b"#!", 0o750)
    assert there() == wanted


@pytest.mark.parametrize(("kind", "filename"), [("zip", "p.zip"), ("tar.gz", "p.tar.gz")])
def test_one_file_of_an_archive(install, there, tmp_path, kind, filename):
    done, wanted = install(packed(kind, {"p-amd64": b"program", "LICENSE": b""}), filename, member="p-*")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lib" / "program").read_bytes() == b"program"
    assert there() == wanted


def test_a_folder_of_an_archive_replaces_the_old_one_whole(install, there, tmp_path):
    install(packed("tar.gz", {"p-1/bin": b"1", "p-1/gone": b""}), "p.tar.gz", member="p-*")
    done, wanted = install(packed("tar.gz", {"p-2/bin": b"2"}), "p.tar.gz", member="p-*")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "lib" / "program"
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("bin", b"2")]
    assert [path.name for path in folder.parent.iterdir()] == ["program"]
    assert there() == wanted


def test_what_arrives_damaged_replaces_nothing(install, there, tmp_path):
    _, wanted = install(b"good")
    done, _ = install(b"damaged", sha256="0" * 64)
    assert done.returncode != 0
    assert (tmp_path / "lib" / "program").read_bytes() == b"good"
    assert there() == wanted


def test_an_archive_of_another_shape_is_refused(install, tmp_path):
    done, _ = install(packed("zip", {"a-1": b"", "a-2": b""}), "p.zip", member="a-*")
    assert done.returncode != 0
    assert "no single a-*" in done.stderr
    assert not (tmp_path / "lib" / "program").exists()


def test_a_file_that_was_touched_is_pushed_again(install, there, tmp_path):
    install(b"program")
    (tmp_path / "lib" / "program").write_bytes(b"another")
    assert there() is None


def test_a_removed_file_is_pushed_again(install, there, tmp_path):
    install(b"program")
    (tmp_path / "lib" / "program").unlink()
    assert there() is None


def test_another_version_or_mode_is_another_identity(install):
    identities = {install(b"1")[1], install(b"2")[1], install(b"1", mode="700")[1]}
    assert len(identities) == 3


def test_the_record_names_each_artifact_once():
    from datetime import UTC, datetime

    used = event_stream.ArtifactUsed(t=1.0, name="loki", version="3", sha256="a" * 64, origin="local")
    missing = event_stream.ArtifactUsed(t=2.0, name="grafana", version="13", sha256=None, origin="missing")
    found = observe([used, used, missing], ended=datetime.now(UTC)).artifacts
    assert [(each.name, each.origin) for each in found] == [("loki", "local"), ("grafana", "missing")]
