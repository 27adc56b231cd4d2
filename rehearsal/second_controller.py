"""Rebuild from a second controller: an empty home, a clean clone, and the sealed bundle.

The rehearsal also shares what is available on any computer: the Python packages of the lock file (a person runs
`make setup`), the cache of upstream files (a person downloads them again, or opens the offline bundle), and the lab's
network: the address of each machine, and the host key that its screen shows; also the way to the internet, if there is
a proxy. The images of services are not shared:
they are in the off-site backup.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minipc.artifacts.store import OFFLINE_VARIABLE
from minipc.bundle import checkout, creation
from minipc.bundle.archive import Manifest
from minipc.config import load
from minipc.core import paths
from minipc.core.environment import LAB, Environment
from minipc.core.errors import MinipcError
from minipc.core.formatting import count
from minipc.core.process import NETWORK, call
from minipc.core.variables import COMMIT_VARIABLE, REHEARSE_AS_VARIABLE, RUN_VARIABLE, SERVICES_VARIABLE
from minipc.remote.pins import read_pins, write_pin
from minipc.secrets import open_store
from minipc.secrets.age import AgeStore
from minipc.secrets.catalogue import generation
from rehearsal import lab
from rehearsal.lab import offsite_storage, tunnel, zone

# Variables that any login has. None of them says where our state, secrets or caches are.
_KEPT_VARIABLES = (
    *("PATH", "LANG", "LC_ALL", "TERM", "TZ", COMMIT_VARIABLE, REHEARSE_AS_VARIABLE, SERVICES_VARIABLE),
    *(OFFLINE_VARIABLE, *NETWORK),
)
_TIMEOUT_S = 60


@dataclass(frozen=True, repr=False)
class SealedBundle:
    """A sealed bundle outside the machines, and its passphrase. It has no repr, because of the passphrase."""

    file: Path
    passphrase: str
    manifest: Manifest

    def remove(self) -> None:
        """Remove the file and its folder."""
        shutil.rmtree(self.file.parent, ignore_errors=True)


def seal(environment: Environment) -> SealedBundle:
    """Seal a bundle of the current state outside the repository, with a new passphrase. Raises as `create`."""
    file = Path(tempfile.mkdtemp(prefix="minipc-bundle-")) / "bundle.age"
    passphrase = secrets.token_urlsafe(24)
    return SealedBundle(file, passphrase, creation.create(environment.name, file, passphrase).manifest)


class SecondController:
    """A computer that has only a clean clone.

    Attributes:
        root: the directory that contains everything of it.
        clone: the clone.
        copied: files that were copied into the clone because they differ from the commit.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="minipc-controller-"))
        self.home = self.root / "home"
        self.clone = self.root / "minipc"
        for folder in (self.home, self.root / "tmp"):
            folder.mkdir(mode=0o700)
        self.copied = clone(paths.ROOT, self.clone)
        share_cache(paths.cache_dir(), self.cache)

    @property
    def cache(self) -> Path:
        """Return the cache directory."""
        return self.root / "cache"

    @property
    def state(self) -> Path:
        """Return the state directory, below the home."""
        return self.home / ".local/state/minipc"

    def open(self, bundle: SealedBundle) -> str:
        """Open the bundle as a person would. Returns the output of the command.

        Raises:
            MinipcError: wrong passphrase, or anything else that `minipc bundle open` refuses.
        """
        done = subprocess.run(
            [*_MINIPC, "bundle", "open", str(bundle.file)],
            cwd=self.clone,
            env=self.environment(),
            input=bundle.passphrase,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if done.returncode:
            errors = done.stderr.strip().splitlines()
            raise MinipcError(
                errors[0].removeprefix("minipc: ") if errors else "the bundle cannot be opened",
                "create a new one: `minipc bundle create`",
            )
        return done.stdout

    def connect(self, machines: Iterable[lab.Machine]) -> None:
        """Make these machines reachable from the second controller. Their disks and keys are not shared.

        The VPN client is the exception: it keeps its key, as a phone would.
        """
        tunnel.hand_over(self.state)
        for machine in machines:
            directory = self.state / "lab/machines" / machine.name
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copy(machine.directory / "machine.json", directory)
            zone.hand_over(machine.name, self.state)
            offsite_storage.hand_over(machine, self.state)

    def start(self, *words: str, run: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start `minipc WORDS` as a part of the run in that folder, and return at once."""
        with log.open("ab") as output:
            output.write(f"$ minipc {' '.join(words)}\n".encode())
            output.flush()
            return subprocess.Popen(
                [*_MINIPC, *words],
                cwd=self.clone,
                env=self.environment() | {RUN_VARIABLE: str(run)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def rebuild(self, machine: lab.Machine, *, run: Path, log: Path, until: str = "") -> subprocess.Popen[bytes]:
        """Start the rebuild of a machine, as the runbook describes it. `end` stops it."""
        words = ["rebuild", "--inventory", "lab", "--target", machine.name]
        words += ["--fingerprint", machine.host_key_fingerprint, *(["--until", until] if until else [])]
        return self.start(*words, run=run.resolve(), log=log)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a process on the second controller."""
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        own = {"HOME": self.home, "TMPDIR": self.root / "tmp", "PYTHONPATH": self.clone}
        return kept | {name: str(path) for name, path in own.items()} | {"MINIPC_CACHE_DIR": str(self.cache)}

    @property
    def secrets(self) -> AgeStore:
        """Return the secrets of the second controller."""
        folder = self.state / "lab/secrets"
        return AgeStore(folder / "lab.age", folder / "age.key")

    def copy_keys_back(self, alias: str) -> None:
        """Copy what the rebuild changed to this controller: the machine's new keys and its pin."""
        if not self.secrets.path.exists():
            return  # the bundle was never opened
        renewed = self.secrets.read(generation(load(LAB.name)))
        open_store("lab").set_many({name: secret.reveal() for name, secret in renewed.items()})
        pin = read_pins(self.state / "lab/pins.json").get(alias)
        if pin:
            write_pin(alias, pin, LAB.pins_file)

    def remove(self) -> None:
        """Remove everything, because it contains keys."""
        shutil.rmtree(self.root, ignore_errors=True)

    def __str__(self) -> str:
        commit = checkout.commit(self.clone)
        changes = f" with {count(len(self.copied), 'uncommitted file')} copied into it" if self.copied else ""
        return f"empty HOME, clean clone of {commit[:12]}{changes}"


_MINIPC = (sys.executable, "-m", "minipc.cli.main")


def share_cache(source: Path, target: Path) -> None:
    """Make a cache with links to all that another one has, without the images of services."""
    (source / "artifacts").mkdir(exist_ok=True)
    (target / "artifacts").mkdir(parents=True)
    for path in (*source.iterdir(), *(source / "artifacts").iterdir()):
        if path.relative_to(source).parts not in (("artifacts",), ("artifacts", "service-images")):
            (target / path.relative_to(source)).symlink_to(path)


def clone(source: Path, target: Path) -> list[str]:
    """Clone a checkout at its commit, and copy the files that differ from the commit into the clone.

    So a rehearsal tests the code as it is in the checkout. A real clone would not contain these files, so the caller
    reports them. Without git, everything is copied.

    Returns:
        The paths of the copied files.
    """
    if checkout.commit(source) == "unknown":
        ignored = shutil.ignore_patterns(".venv", "reports", ".git", "__pycache__", ".*_cache", "*.bak")
        shutil.copytree(source, target, ignore=ignored, symlinks=True)
        return ["everything (no git checkout)"]
    call("git", "clone", "--quiet", "--no-hardlinks", str(source), str(target))
    call("git", "-C", str(target), "checkout", "--quiet", "--detach", checkout.commit(source))
    changed = checkout.changed_paths(source)
    for path in changed:
        (target / path).unlink(missing_ok=True)
        if (source / path).is_file():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, target / path)
    return changed


def end(process: subprocess.Popen[bytes], first: signal.Signals = signal.SIGINT) -> None:
    """End a process and all its children, and wait for it. A process that survives 20 s is killed."""
    for number in (first, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=20)
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue
        return
