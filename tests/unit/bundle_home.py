"""An operator's computer for the tests of the bundle: a clone, a home, keys and secrets, all in a temporary folder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from minipc import config
from minipc.bundle import contents, creation, opening
from minipc.core import paths
from minipc.core.errors import SecretError
from minipc.remote.inventory import Target
from minipc.secrets import key_file, open_store
from minipc.secrets.generate import generate
from minipc.secrets.sealed import _HEADER
from playbooks import bundle_metrics

PASSPHRASE = "orbit mango tundra velvet quilt"
SSH_KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n"
FILES = {
    "group_data/production.py": 'vpn_endpoint = "service.example.org"\n',
    "inventory/production.py": "production = []\n",
    "inventory/pins.json": "{}\n",
    "artifacts.lock": "# locked\n",
}


def git(directory: Path, *argv: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *argv], check=True, capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip()


@dataclass
class Computer:
    """Where everything is."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    name: str = "one"

    @property
    def home(self) -> Path:
        return self.root / self.name / "home"

    @property
    def clone(self) -> Path:
        return self.root / self.name / "clone"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle.age"

    @property
    def remote(self) -> Path:
        return self.root / "remote.git"

    def use(self) -> None:
        """From now on this is the computer that commands run on."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.monkeypatch.setenv("HOME", str(self.home))
        for variable in ("CONFIG", "STATE", "CACHE"):
            self.monkeypatch.delenv(f"MINIPC_{variable}_DIR", raising=False)
            self.monkeypatch.delenv(f"XDG_{variable}_HOME", raising=False)
        self.monkeypatch.delenv("MINIPC_AGE_KEY_FILE", raising=False)
        self.monkeypatch.setattr(paths, "ROOT", self.clone)

    def another(self, name: str) -> Computer:
        """A blank computer with a clean clone and an empty home."""
        other = Computer(self.root, self.monkeypatch, name)
        other.clone.parent.mkdir()
        git(self.root, "clone", "-q", str(self.remote), str(other.clone))
        other.use()
        return other

    def commit(self, message: str = "work") -> None:
        git(self.clone, "add", "-A")
        git(self.clone, "commit", "-q", "-m", message)
        git(self.clone, "push", "-q", "origin", "HEAD")


def set_up(template: Path, root: Path, monkeypatch: pytest.MonkeyPatch, lab: config.Settings) -> Computer:
    """A computer as it is after `minipc secrets init` and a commit that was pushed; made once, then copied."""
    monkeypatch.setattr(config, "load", lambda environment: lab)
    if not template.exists():
        _make(Computer(template, monkeypatch))
    shutil.copytree(template, root, dirs_exist_ok=True, symlinks=True)
    computer = Computer(root, monkeypatch)
    settings = computer.clone / ".git/config"
    settings.write_text(settings.read_text().replace(str(template), str(root)))
    computer.use()
    key = str(computer.home / ".ssh" / "id_ed25519")
    target = Target("box", {"ssh_key": key}, lab)
    monkeypatch.setattr(contents, "targets", lambda environment: [target])
    monkeypatch.setattr(bundle_metrics, "targets", lambda environment: [])
    return computer


def _make(computer: Computer) -> None:
    computer.clone.mkdir(parents=True)
    git(computer.root, "init", "-q", "--bare", str(computer.remote))
    git(computer.clone, "init", "-q")
    git(computer.clone, "remote", "add", "origin", str(computer.remote))
    for name, content in FILES.items():
        (computer.clone / name).parent.mkdir(exist_ok=True)
        (computer.clone / name).write_text(content)
    computer.use()
    key = computer.home / ".ssh" / "id_ed25519"
    key.parent.mkdir(mode=0o700)
    key.write_bytes(SSH_KEY)
    key.chmod(0o600)
    key.with_suffix(".pub").write_text("ssh-ed25519 AAAA you@laptop\n")
    generate("production")
    open_store("production").set_many({"sentry.dsn": "https://hunter2@sentry.example.org/1"})
    (computer.clone / "secrets/production.age.bak").unlink()
    (computer.clone / ".gitignore").write_text("/secrets/*.bak\n")
    computer.commit()


def quick_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seals that take no second each, and refuse what the true ones refuse; for tests that are about something else."""

    def mark(passphrase: str) -> bytes:
        return _HEADER + hashlib.sha256(passphrase.encode()).digest()

    def seal(payload: bytes, passphrase: str) -> bytes:
        return mark(passphrase) + hashlib.sha256(payload).digest() + payload

    def open_sealed(sealed: bytes, passphrase: str) -> bytes:
        begin = len(mark(passphrase))
        digest, payload = sealed[begin : begin + 32], sealed[begin + 32 :]
        if sealed[:begin] != mark(passphrase):
            raise SecretError("the passphrase is wrong, or the file's first lines are damaged", "try again")
        if hashlib.sha256(payload).digest() != digest:
            raise SecretError("the sealed file is damaged or incomplete", "take another copy")
        return payload

    monkeypatch.setattr(creation, "seal", seal)
    monkeypatch.setattr(creation, "open_sealed", open_sealed)
    monkeypatch.setattr(opening, "open_sealed", open_sealed)
    monkeypatch.setattr(key_file, "seal", seal)
    monkeypatch.setattr(key_file, "open_sealed", open_sealed)


def everything(computer: Computer) -> dict[str, bytes]:
    """All files below a computer's home and clone, git's own aside."""
    return {
        str(path.relative_to(computer.root / computer.name)): path.read_bytes()
        for path in sorted((computer.root / computer.name).rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }
