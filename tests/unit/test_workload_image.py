"""The image's archive: what is in it, and that the same inputs give the same bytes. Builds are in tests/lab."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from minipc.errors import MinipcError
from minipc.workload import image, oci

CODE = (oci.File("/opt/workload/a/b.py", b"print()\n"), oci.File("/opt/workload/c.py", b""))


def archive(path: Path, code: tuple[oci.File, ...] = CODE, reference: str = "minipc.local/workload:1") -> oci.Image:
    layer = path.with_suffix(".layer")
    layer.write_bytes(oci.layer(code, 1_700_000_000))
    return oci.write(
        path,
        reference=reference,
        architecture="amd64",
        created="2023-11-14T22:13:20Z",
        config={"User": "10001:10001", "Labels": {"org.opencontainers.image.revision": "abc"}},
        layers=[(layer, "code")],
    )


def blob(path: Path, digest: str) -> bytes:
    with tarfile.open(path) as tar:
        found = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
        assert found
        return found.read()


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    first, second = archive(tmp_path / "1.tar"), archive(tmp_path / "2.tar", code=CODE[::-1])
    assert first == second
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_another_byte_of_code_is_another_digest(tmp_path):
    other = (CODE[0], oci.File("/opt/workload/c.py", b"#"))
    assert archive(tmp_path / "1.tar").digest != archive(tmp_path / "2.tar", code=other).digest


def test_every_blob_is_what_its_name_says(tmp_path):
    path = tmp_path / "1.tar"
    described = archive(path)
    manifest = json.loads(blob(path, described.digest))
    for each in [manifest["config"], *manifest["layers"]]:
        content = blob(path, each["digest"])
        assert each["size"] == len(content)
        assert each["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
    config = json.loads(blob(path, described.config_digest))
    assert config["rootfs"]["diff_ids"] == [each["digest"] for each in manifest["layers"]]
    with tarfile.open(path) as tar:
        listing = json.load(tar.extractfile("manifest.json"))
        assert all(name in tar.getnames() for name in [listing[0]["Config"], *listing[0]["Layers"]])
        assert listing[0]["RepoTags"] == ["minipc.local/workload:1"]


def test_a_layer_belongs_to_root_and_has_every_directory(tmp_path):
    path = tmp_path / "layer.tar"
    path.write_bytes(oci.layer(CODE, 1_700_000_000))
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["opt", "opt/workload", "opt/workload/a", "opt/workload/a/b.py", "opt/workload/c.py"]
        assert {(each.uid, each.gid, each.mtime) for each in tar} == {(0, 0, 1_700_000_000)}
        assert {each.mode for each in tar if each.isfile()} == {0o644}


def test_reads_what_it_wrote(tmp_path):
    described = archive(tmp_path / "2.tar")
    assert oci.read(tmp_path / "2.tar") == described
    assert described.labels == {"org.opencontainers.image.revision": "abc"}


@pytest.mark.parametrize("content", [b"", b"no tar", b"\0" * 10240])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(MinipcError, match="no image archive"):
        oci.read(tmp_path / "x.tar")


@pytest.fixture
def checkout(tmp_path):
    """A git repository with a workload in it."""
    package = tmp_path / "workload" / "minipc_workload"
    package.mkdir(parents=True)
    (package / "api.py").write_text("1\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__/api.pyc").write_text("x")
    git(tmp_path, "init", "-q")
    commit(tmp_path, "workload")
    return tmp_path


def git(directory: Path, *argv: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", "-C", directory, *identity, *argv], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(directory: Path, path: str) -> None:
    git(directory, "add", path)
    git(directory, "commit", "-qm", "a change")


def test_the_tag_is_the_last_commit_of_the_code(checkout):
    before = image.source(checkout / "workload")
    assert before.tag == before.commit == git(checkout, "rev-parse", "HEAD")
    assert [file.path for file in before.files] == ["/opt/workload/minipc_workload/api.py"]
    (checkout / "README").write_text("elsewhere")
    commit(checkout, "README")
    assert image.source(checkout / "workload") == before


def test_uncommitted_code_has_a_tag_of_its_own(checkout):
    committed = image.source(checkout / "workload")
    tags = set()
    for text in ("2\n", "3\n"):
        (checkout / "workload/minipc_workload/api.py").write_text(text)
        found = image.source(checkout / "workload")
        assert found.commit == committed.commit
        assert found.tag.startswith(f"{committed.commit}-")
        tags.add(found.tag)
    assert len(tags) == 2


def test_outside_git_the_commit_is_unknown(tmp_path):
    (tmp_path / "minipc_workload").mkdir()
    (tmp_path / "minipc_workload/api.py").write_text("1\n")
    found = image.source(tmp_path)
    assert found.commit == "unknown"
    assert found.tag.startswith("unknown-")


def test_the_image_runs_as_the_user_of_the_manifests():
    pod = (image.ROOT / "gitops/workload/base/pod.yaml").read_text()
    assert f"runAsUser: {image.UID}" in pod
    assert f"runAsGroup: {image.UID}" in pod
