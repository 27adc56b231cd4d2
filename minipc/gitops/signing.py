"""Signatures of commits: who may sign, how minipc signs, and whether a commit is signed by somebody who may.

The keys are SSH keys. Format of the file of signers: ALLOWED SIGNERS in ssh-keygen(1).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minipc.core.environment import Environment
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.files import write_atomic
from minipc.core.formatting import first_line
from minipc.gitops import git
from minipc.secrets import Secret, open_store
from minipc.secrets.catalogue import RELEASE_SIGNING_KEY, for_environment
from minipc.secrets.ed25519 import public_key
from minipc.secrets.generate import fill

NAMESPACE = "git"
"""What Git's signatures are for; a signature of a file is not one of a commit."""
SELF = "minipc-release"
"""The name under which minipc's own key is in the file of signers."""
_MARK = b"gpgsig "


def signers_file(environment: Environment) -> Path:
    """Return the file that says who may sign what is synced."""
    return environment.trust_folder / "allowed_signers"


def signing_key(environment: Environment) -> Secret:
    """Return the key that minipc signs its own commits with. Raises SecretError if there is none."""
    return open_store(environment.name).get(RELEASE_SIGNING_KEY)


def prepare(environment: Environment) -> list[str]:
    """Make the signing key where there is none, and allow it; return what was done, for messages.

    Raises:
        SecretError: the secrets cannot be read or written.
    """
    entries = [entry for entry in for_environment(environment.name) if entry.name == RELEASE_SIGNING_KEY]
    done = [f"generated {name}" for name in fill(open_store(environment.name), entries).generated]
    path, line = signers_file(environment), signer_line(signing_key(environment))
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if line not in text.splitlines():
        write_atomic(path, f"{text.rstrip()}\n{line}\n".lstrip("\n").encode(), mode=0o644)
        done.append(f"added minipc's own key to {path}")
    return done


def signer_line(key: Secret) -> str:
    """Return the line of the file of signers that allows a key of minipc's own."""
    return f'{SELF} namespaces="{NAMESPACE}" {public_key(key)}'


@contextmanager
def key_file(key: Secret) -> Iterator[Path]:
    """Hold a private key in a file that only this user can read, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="minipc-", dir=os.environ.get("XDG_RUNTIME_DIR")) as name:
        path = Path(name) / "key"
        with open(path, "w", encoding="utf-8", opener=lambda file, flags: os.open(file, flags, 0o600)) as file:
            file.write(key.reveal())
        yield path


def commit(directory: Path, tree: str, parent: str, message: str, key: Secret) -> str:
    """Make a signed commit of a tree, and return its hash. Nothing is pushed.

    Args:
        parent: hash of the commit before; empty for a first one.

    Raises:
        MinipcError: git failed.
    """
    parents = ["-p", parent] if parent else []
    with key_file(key) as file:
        made = git.run(
            directory,
            *("commit-tree", tree, *parents, f"-S{file}", "-m", message),
            environment=git.person(),
            settings={"user.signingKey": str(file)},
        )
    return made.decode().strip()


def verify(directory: Path, name: str, signers: Path, *, now: bool = True) -> None:
    """Check that a commit carries a valid signature of somebody who may sign.

    Args:
        name: hash of the commit.
        signers: the file of signers.
        now: the signer must still be allowed at this moment. Git alone asks for the moment of the commit, which the
            holder of an expired key can choose. False for a commit that a person approved when it was new.

    Raises:
        RefusedError: it does not.
        CouldNotVerifyError: there is no file of signers, or a program is missing.
    """
    if not signers.is_file() or not signers.read_text(encoding="utf-8").strip():
        raise RefusedError(
            f"{signers} contains no allowed signer",
            "run `minipc release pin` to add minipc's own key; add the keys of people you trust",
        )
    try:
        git.run(directory, "verify-commit", name, settings={"gpg.ssh.allowedSignersFile": str(signers)})
        if now:
            _verify_now(git.run(directory, "cat-file", "commit", name), signers)
    except MinipcError as error:
        if isinstance(error, CouldNotVerifyError):
            raise
        raise RefusedError(
            f"commit {name[:12]} of the deploy repository is not signed by anybody in {signers}: {error.what}",
            "find out who pushed it. If it is yours: sign it (git commit --amend -S), or add your key there. "
            "If it is not: reset the branch to the last approved commit, and replace the keys that can push",
        ) from None


def _verify_now(raw: bytes, signers: Path) -> None:
    """Raise MinipcError unless the signature of a raw commit is valid at this moment."""
    payload, signature = split(raw)
    with tempfile.TemporaryDirectory(prefix="minipc-") as name:
        file = Path(name) / "signature"
        file.write_bytes(signature)
        arguments = ["-f", str(signers), "-s", str(file)]
        found = _ssh_keygen("find-principals", *arguments).decode(errors="replace").splitlines()
        principal = found[0] if found else ""
        _ssh_keygen("verify", *arguments, "-I", principal, "-n", NAMESPACE, stdin=payload)


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Return what was signed of a raw commit, and the signature. Raises MinipcError unless there is exactly one."""
    header, blank, body = raw.partition(b"\n\n")
    kept: list[bytes] = []
    signature: list[bytes] = []
    inside, found = False, 0
    for line in header.split(b"\n"):
        if inside and line.startswith(b" "):
            signature.append(line[1:])
            continue
        inside = line.startswith(_MARK)
        found += line.startswith(b"gpgsig")
        if inside:
            signature = [line.removeprefix(_MARK)]
        else:
            kept.append(line)
    if found != 1 or not signature:
        raise MinipcError(f"it has {found} signatures")
    return b"\n".join(kept) + blank + body, b"\n".join(signature) + b"\n"


def _ssh_keygen(action: str, *argv: str, stdin: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", action, *argv], input=stdin, capture_output=True, timeout=git.TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CouldNotVerifyError(
            f"ssh-keygen: {error}", "`minipc doctor` shows what is missing on this controller"
        ) from None
    if done.returncode:
        said = first_line((done.stderr + done.stdout).decode(errors="replace"))
        raise MinipcError(said or "the signature is not valid")
    return done.stdout
