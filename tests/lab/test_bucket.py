"""Backups in a bucket, with a real S3 server (versitygw): bad input on loopback, and a rehearsal of the loss."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from minipc.core.errors import MissingPrerequisiteError
from minipc.core.polling import wait_until
from minipc.remote.host_keys import generate_key
from minipc.secrets import Secret, ed25519
from minipc_machine.bucket import Bucket, Key, contents, examine, request
from minipc_machine.program import FailedError
from rehearsal import lab
from rehearsal.lab import bucket
from tests.lab.conftest import run

PORT = 17443
OWNER, STRANGER = Key("owner-key", "hunter2-owner"), Key("stranger-key", "hunter2-stranger")
READ_ONLY = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": ["stranger-key"],
"Action": ["s3:ListBucket", "s3:GetObject"], "Resource": ["arn:aws:s3:::backups", "arn:aws:s3:::backups/*"]}]}"""


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return bucket.program()
    except MissingPrerequisiteError as error:
        pytest.skip(f"NOT EXERCISED: {error}")


@pytest.fixture(scope="module")
def server(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Run a server on loopback with TLS, two accounts and an empty bucket. Yield the bucket."""
    folder = tmp_path_factory.mktemp("s3")
    generate_key(folder / "key", "test")
    key = Secret("offsite.tls_key", (folder / "key").read_text())
    certificate = ed25519.certificate(key, "127.0.0.1")
    (folder / "tls.crt").write_text(certificate)
    (folder / "tls.key").write_text(ed25519.pem(key))
    for name in ("objects", "versions", "accounts"):
        (folder / name).mkdir()
    # The server changes its working directory.
    argv = [str(program), "--port", f"127.0.0.1:{PORT}", "--region", "eu-1", "--quiet"]
    argv += ["--cert", str(folder / "tls.crt"), "--key", str(folder / "tls.key"), "--iam-dir", str(folder / "accounts")]
    argv += ["posix", "--versioning-dir", str(folder / "versions"), str(folder / "objects")]
    keys = {"ROOT_ACCESS_KEY": OWNER.access, "ROOT_SECRET_KEY": OWNER.secret}
    place = Bucket(f"127.0.0.1:{PORT}", "backups", "eu-1", certificate)
    with subprocess.Popen(argv, env=os.environ | keys, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_until(lambda: _answers(place), 20)
            assert request(place, OWNER, "PUT").status == 200
            user = ["create-user", "--access", STRANGER.access, "--secret", STRANGER.secret, "--role", "user"]
            admin = [str(program), "admin", "--access", OWNER.access, "--secret", OWNER.secret, "--region", "eu-1"]
            admin += ["--allow-insecure", "--endpoint-url", f"https://127.0.0.1:{PORT}"]
            subprocess.run([*admin, *user], check=True, capture_output=True, timeout=30)
            yield place
        finally:
            process.terminate()


def _answers(place: Bucket) -> bool:
    try:
        return request(place, OWNER, "GET").status < 500
    except FailedError:
        return False


def test_a_bucket_without_versioning_is_named_and_with_it_keeps_what_is_deleted(server):
    assert not examine(server, OWNER).versioning
    assert "NO VERSIONING" in str(examine(server, OWNER))
    on = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    assert request(server, OWNER, "PUT", query="versioning=", body=on).status == 200
    assert examine(server, OWNER).versioning
    assert contents(server, OWNER) == [], "the check leaves nothing"

    request(server, OWNER, "PUT", "kept", body=b"backup")
    request(server, OWNER, "DELETE", "kept")
    assert request(server, OWNER, "GET", "kept").status == 404
    marker = request(server, OWNER, "GET", query="prefix=kept&versions=").body.partition(b"<DeleteMarker>")[2]
    version = marker.partition(b"<VersionId>")[2].partition(b"<")[0].decode()
    request(server, OWNER, "DELETE", "kept", query=f"versionId={version}")
    assert request(server, OWNER, "GET", "kept").body == b"backup"
    request(server, OWNER, "DELETE", "kept")


@pytest.mark.parametrize(
    ("place", "key", "message"),
    [
        ({}, STRANGER, "cannot be listed: AccessDenied: give the key the right"),
        ({}, Key(OWNER.access, "hunter2"), "the key is wrong"),
        ({"region": "us-2"}, OWNER, "its region is not us-2; it is in eu-1"),
        ({"name": "nothing-here"}, OWNER, "create it"),
        ({"ca": ""}, OWNER, "certificate verify failed"),
        ({"endpoint": "127.0.0.1:1"}, OWNER, "cannot be reached"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused_with_the_reason(server, place, key, message):
    with pytest.raises(FailedError, match=message) as caught:
        examine(replace(server, **place), key)
    assert "hunter2" not in str(caught.value)


def test_a_key_that_may_only_read_is_refused(server):
    assert request(server, OWNER, "PUT", query="policy=", body=READ_ONLY.encode()).status in (200, 204)
    try:
        with pytest.raises(FailedError, match="cannot be written to: AccessDenied"):
            examine(server, STRANGER)
    finally:
        assert request(server, OWNER, "DELETE", query="policy=").status in (200, 204)


def test_a_bucket_with_the_files_of_somebody_else_is_refused(server):
    assert request(server, OWNER, "PUT", "photos.tar", body=b"x").status == 200
    try:
        with pytest.raises(FailedError, match=r"used by something else: it contains 'photos\.tar'"):
            examine(server, OWNER)
    finally:
        request(server, OWNER, "DELETE", "photos.tar")


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_lost_machine_comes_back_from_the_bucket_alone(program, lab_ready):
    name = f"bucket-{os.getpid()}"
    try:
        done = run("minipc", "rehearse", "--offsite", "s3", "--name", name, timeout_s=1400)
        record = done.record
    finally:
        lab.down([name, f"{name}-2", f"offsite-{name}"])
    assert done.code == 0, done.output[-4000:]
    assert record["verdict"] == "pass"
    skipped = {each["what"] for each in record["exercised"]["not_exercised"]}
    assert {"fence of the lost machine", "deploy repository", "monitoring from outside"} <= skipped
    passed = {each["name"] for each in record["checks"] if each["outcome"] == "passed"}
    assert "The bucket has versioning, so that deleted backups can be restored" in passed
    assert {f"A backup into the repository succeeds ({repo})" for repo in ("repo2", "restic")} <= passed
