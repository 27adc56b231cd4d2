"""Push an upstream file from the controller's cache to the machine: verified there, then renamed into place.

found = artifact("loki", component="loki")
if found:
    program = push(name="Install Loki", artifact=found, path="/usr/local/lib/minipc/loki", member="loki-linux-*")
"""

from __future__ import annotations

import hashlib
import secrets
import shlex
from collections.abc import Generator

from pyinfra import context, logger
from pyinfra.api import FileUploadCommand, OperationError, StringCommand, operation

from minipc.artifacts import Artifact
from minipc.pyinfra_ext.facts.artifacts import STAMPS, PushedArtifacts, signature_command, stamp_path
from minipc.pyinfra_ext.facts.memory import announce, announced, recall
from minipc.pyinfra_ext.operations.files import STAGE, Placed
from minipc.pyinfra_ext.progress import note_placed


def push(name: str, artifact: Artifact, path: str, *, member: str | None = None, mode: str = "755") -> Placed:
    """Install the file at this path.

    Args:
        path: absolute path of the file on the machine; or of the folder, if `member` is a folder.
        member: shell pattern in a zip or tar.gz that must match exactly one file or folder;
            None: the unchanged file.
        mode: octal digits without leading zero; a folder keeps the modes in the archive.
    """
    announce(context.host, PushedArtifacts, [path])
    note_placed([path])
    wanted = identity(artifact, path, member, mode)
    meta = artifact_present(name=name, artifact=artifact, path=path, member=member, mode=mode)
    return Placed(meta, wanted, ())


def identity(artifact: Artifact, path: str, member: str | None, mode: str) -> str:
    """Return the hash of the wanted state of a path."""
    return hashlib.sha256(f"{artifact.sha256} {path} {member} {mode}".encode()).hexdigest()


@operation()
def artifact_present(
    artifact: Artifact, path: str, member: str | None, mode: str
) -> Generator[StringCommand | FileUploadCommand, None, None]:
    """Upload, verify on the machine, unpack, rename into place, and write the stamp."""
    host = context.host
    wanted = identity(artifact, path, member, mode)
    there: dict[str, str] = recall(PushedArtifacts, paths=announced(host, PushedArtifacts))
    if there.get(path) == wanted:
        return
    if artifact.path is None:
        raise OperationError(f"{artifact.name} is not in the cache; run `minipc artifacts fetch {artifact.name}`")
    host.log(f"place {path}: {artifact}", logger.info if context.state.config.DIFF else logger.debug)
    stage = f"{STAGE}/{secrets.token_hex(8)}"
    yield StringCommand(f"install -d -m 700 {STAGE} {stage}")
    yield FileUploadCommand(str(artifact.path), f"{stage}/file")
    script = install_script(artifact, path, member, mode, stage)
    yield StringCommand("sh", "-c", shlex.quote(script))


def install_script(artifact: Artifact, path: str, member: str | None, mode: str, stage: str) -> str:
    """Return the shell script that installs the uploaded `file` from the stage."""
    folder, base = path.rsplit("/", 1)
    target, candidate, old = (shlex.quote(f"{folder}/{each}") for each in (base, f".{base}.new", f".{base}.old"))
    stamp = stamp_path(path)
    lines = [
        "set -eu",
        "umask 022",
        f"trap 'rm -rf -- {stage} {candidate} {old}' EXIT",
        f"echo '{artifact.sha256}  {stage}/file' | sha256sum --check --quiet",
        f"install -d -m 755 {STAMPS}",
        f"[ -d {shlex.quote(folder)} ] || install -d -m 755 {shlex.quote(folder)}",
        f"rm -rf -- {candidate}",
    ]
    if member:
        zipped = artifact.filename.endswith(".zip")
        unpack = f"python3 -m zipfile -e {stage}/file" if zipped else f"tar --no-same-owner -xzf {stage}/file -C"
        lines += [
            f"mkdir {stage}/out",
            f"{unpack} {stage}/out",
            f"set -- {stage}/out/{member}",
            f'[ $# = 1 ] && [ -e "$1" ] || {{ echo "the archive has no single {member}: $*" >&2; exit 1; }}',
        ]
    else:
        lines.append(f"set -- {stage}/file")
    lines += [
        f'if [ -f "$1" ]; then install -m {mode} -- "$1" {candidate}; else cp -a -- "$1" {candidate}; fi',
        f"sync -f -- {candidate}",
        # A folder cannot be renamed over one that is not empty.
        f"[ ! -d {target} ] || mv -T -- {target} {old}",
        f"mv -fT -- {candidate} {target}",
        f"{{ echo {identity(artifact, path, member, mode)}; {signature_command(path)}; echo; }} > {stamp}.new",
        f"sync {stamp}.new",
        f"mv -f {stamp}.new {stamp}",
    ]
    return "\n".join(lines)
