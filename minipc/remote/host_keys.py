"""SSH host keys: generate one, and show its fingerprint as OpenSSH does."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from minipc.core.process import call


def generate_host_key(directory: Path, name: str) -> str:
    """Generate `ssh_host_ed25519_key` in a directory and return its public half without the comment.

    Raises:
        MinipcError: ssh-keygen failed.
    """
    key = directory / "ssh_host_ed25519_key"
    generate_key(key, f"root@{name}")
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


def generate_key(path: Path, comment: str) -> None:
    """Generate an ed25519 key pair without passphrase; replaces the file. Raises MinipcError if ssh-keygen fails."""
    path.unlink(missing_ok=True)
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path))


def fingerprint_of(public_key: str) -> str:
    """Return the `SHA256:…` fingerprint of a key (`ssh-ed25519 AAAA…`), as `ssh-keygen -l` prints it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
