"""An S3 server on an off-site machine of the lab: versitygw, built by `go install`, with TLS and versioning."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from minipc.core.errors import MinipcError, MissingPrerequisiteError
from minipc.core.paths import cache_dir
from minipc.core.polling import wait_until
from minipc.core.process import call
from minipc.secrets import ed25519, open_store
from minipc.secrets.catalogue import S3_ACCESS_KEY, S3_SECRET_KEY, TLS_KEY
from minipc.secrets.generate import alphanumeric
from minipc_machine.bucket import Answer, Bucket, Key, request
from minipc_machine.program import FailedError
from rehearsal.lab import offsite_storage
from rehearsal.lab.machine import Machine
from rehearsal.lab.ssh import run, ssh_config_path

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
PORT, REGION, NAME = 7443, "lab-1", "minipc-backups"
HOME = "/srv/s3"
_VERSIONING = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
_START = f"""set -eu
umask 077
mkdir -p {HOME}/objects {HOME}/versions
cat > {HOME}/environment
chmod 755 {HOME}/versitygw
systemd-run --quiet --unit=versitygw -p EnvironmentFile={HOME}/environment -p Restart=always {HOME}/versitygw \\
  --port :{PORT} --cert {HOME}/tls.crt --key {HOME}/tls.key --region {REGION} --quiet \\
  posix --versioning-dir {HOME}/versions {HOME}/objects
"""


def program() -> Path:
    """Return the server's program, built once into the cache. Raises MissingPrerequisiteError where Go is missing."""
    directory = cache_dir("go-tools") / MODULE.replace("/", "_")
    if not directory.exists():
        if not shutil.which("go"):
            raise MissingPrerequisiteError("Go is not installed, which builds the S3 server", "apt-get install golang")
        scratch = directory.with_name(f".{directory.name}.{os.getpid()}")
        done = subprocess.run(
            ["go", "install", MODULE],
            env=os.environ | {"GOBIN": str(scratch)},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode:
            raise MissingPrerequisiteError(f"the S3 server cannot be built: {done.stderr[-500:]}", "go install it")
        scratch.rename(directory)
    return next(directory.iterdir())


def key() -> Key:
    """Return the key of the lab's buckets, one of the lab's own secrets. It is created on first use."""
    store = open_store("lab")
    missing = {S3_ACCESS_KEY, S3_SECRET_KEY} - set(store.names())
    if missing:
        store.set_many({name: alphanumeric() for name in missing})
    return Key(store.get(S3_ACCESS_KEY).reveal(), store.get(S3_SECRET_KEY).reveal())


def serve(machine: Machine) -> Bucket:
    """Run the server on a blank machine with one bucket that has versioning, and note it for the inventory.

    Raises:
        MissingPrerequisiteError: the server cannot be built.
        MinipcError: it does not start.
    """
    binary, own, tls = program(), key(), open_store("lab").get(TLS_KEY)
    bucket = Bucket(f"{machine.public_ipv4}:{PORT}", NAME, REGION, ed25519.certificate(tls, machine.public_ipv4))
    run(machine, ["install", "-d", "-m", "700", HOME])
    for name, text in (("tls.crt", bucket.ca), ("tls.key", ed25519.pem(tls))):
        run(machine, ["sh", "-c", f"umask 077; cat > {HOME}/{name}"], stdin=text)
    call("scp", "-q", "-F", str(ssh_config_path()), str(binary), f"{machine.name}:{HOME}/versitygw", timeout=300)
    run(machine, ["sh", "-c", _START], stdin=f"ROOT_ACCESS_KEY={own.access}\nROOT_SECRET_KEY={own.secret}\n")

    def answers() -> bool:
        try:
            return request(bucket, own, "GET").status < 500
        except FailedError:
            return False

    wait_until(answers, 30)
    _accepted(request(bucket, own, "PUT"))
    _accepted(request(bucket, own, "PUT", query="versioning=", body=_VERSIONING))
    settings = {"endpoint": bucket.endpoint, "bucket": NAME, "region": REGION, "ca": bucket.ca}
    offsite_storage.note(machine, {"offsite_kind": "s3", "offsite_s3": settings})
    return bucket


def _accepted(answer: Answer) -> None:
    """Raise MinipcError if the server refused a request."""
    if answer.status != 200:
        raise MinipcError(f"the lab's S3 server refused a request: {answer.code}", "read its journal: versitygw")
