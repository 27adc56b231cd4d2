"""Another computer for a rebuild: an empty home and a clean clone, which become the operator's by the bundle alone.

What a rehearsal hands over besides is what is at hand on any computer: the Python packages of the lock file (a person
runs `make setup`), the cache of upstream files (a person downloads them again, or opens the offline bundle), and the
lab's network: which machine is at which address, with the host key that its screen shows.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minipc import lab, paths
from minipc.bundle import checkout, creation
from minipc.bundle.archive import Manifest
from minipc.errors import MinipcError
from minipc.inventory import Environment
from minipc.lab import tunnel, zone
from minipc.lab.inventory import pin_lab_machine
from minipc.pins import read_pins
from minipc.secrets import open_store
from minipc.secrets.age import AgeStore
from minipc.secrets.catalogue import GENERATION
from minipc.variables import COMMIT_VARIABLE, REHEARSE_AS_VARIABLE, RUN_VARIABLE
from minipc.wording import count

# What a login gives any process; nothing that says where our state, secrets or caches are.
_KEPT = ("PATH", "LANG", "LC_ALL", "TERM", "TZ", COMMIT_VARIABLE, REHEARSE_AS_VARIABLE)
_END_S = 60


@dataclass(frozen=True, repr=False)
class Stick:
    """A sealed bundle off the box, and what opens it; no repr, because of the passphrase."""

    file: Path
    passphrase: str
    manifest: Manifest

    def remove(self) -> None:
        """The file and its folder."""
        shutil.rmtree(self.file.parent, ignore_errors=True)


def seal(environment: Environment) -> Stick:
    """A bundle of what there is now, with a passphrase of its own, outside the repository. Raises as `create`."""
    file = Path(tempfile.mkdtemp(prefix="minipc-stick-")) / "stick.age"
    passphrase = secrets.token_urlsafe(24)
    return Stick(file, passphrase, creation.create(environment, file, passphrase).manifest)


class Elsewhere:
    """A computer that has nothing but a clean clone.

    Attributes:
        root: where all of it is.
        clone: the clone.
        copied: files that were put into the clone because its commit hasn't them as they are here.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="minipc-elsewhere-"))
        self.home = self.root / "home"
        self.clone = self.root / "minipc"
        for folder in (self.home, self.root / "tmp"):
            folder.mkdir(mode=0o700)
        self.copied = clone(paths.ROOT, self.clone)

    @property
    def state(self) -> Path:
        """The state directory, below the home."""
        return self.home / ".local/state/minipc"

    def open(self, stick: Stick) -> str:
        """Opens the bundle, as a person would; returns what it printed.

        Raises:
            MinipcError: wrong passphrase, or anything else that `minipc bundle open` refuses.
        """
        done = subprocess.run(
            [*_CLI, "bundle", "open", str(stick.file)],
            cwd=self.clone,
            env=self.environment(),
            input=stick.passphrase,
            capture_output=True,
            text=True,
            timeout=_END_S,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise MinipcError(
                said[0].removeprefix("minipc: ") if said else "the bundle can't be opened",
                "seal a new one: `minipc bundle create`",
            )
        return done.stdout

    def connect(self, machines: list[lab.Machine]) -> None:
        """The lab's network: these machines can be reached from there. Their disks and keys are not handed over.

        But for the VPN's client: like a phone it is nobody's computer, and stays the same peer.
        """
        tunnel.hand_over(self.state)
        for machine in machines:
            place = self.state / "lab/machines" / machine.name
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copy(machine.directory / "machine.json", place)
            zone.hand_over(machine.name, self.state)

    def start(self, *words: str, run: Path, log: Path) -> subprocess.Popen[bytes]:
        """Starts `minipc WORDS` there, as a part of the run in that folder, and returns at once."""
        with log.open("ab") as output:
            output.write(f"$ minipc {' '.join(words)}\n".encode())
            output.flush()
            return subprocess.Popen(
                [*_CLI, *words],
                cwd=self.clone,
                env=self.environment() | {RUN_VARIABLE: str(run)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def rebuild(self, machine: lab.Machine, *, run: Path, log: Path, until: str = "") -> subprocess.Popen[bytes]:
        """Starts the rebuild of a machine, as the runbook says it; `end` ends it."""
        words = ["rebuild", "--inventory", "lab", "--target", machine.name]
        words += ["--fingerprint", machine.host_key_fingerprint, *(["--until", until] if until else [])]
        return self.start(*words, run=run.resolve(), log=log)

    def environment(self) -> dict[str, str]:
        """The variables of a process there."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {"HOME": self.home, "TMPDIR": self.root / "tmp", "PYTHONPATH": self.clone}
        return kept | {name: str(path) for name, path in own.items()} | {"MINIPC_CACHE_DIR": str(paths.cache_dir())}

    @property
    def secrets(self) -> AgeStore:
        """The secrets, as they are there."""
        folder = self.state / "lab/secrets"
        return AgeStore(folder / "lab.age", folder / "age.key")

    def hand_back(self, alias: str) -> None:
        """What the rebuild changed there, for whoever goes on here: the machine's new keys and its pin."""
        if not self.secrets.path.exists():
            return  # the bundle was never opened
        fresh = self.secrets.read(GENERATION)
        open_store("lab").set_many({name: secret.reveal() for name, secret in fresh.items()})
        pin = read_pins(self.state / "lab/pins.json").get(alias)
        if pin:
            pin_lab_machine(alias, pin)

    def remove(self) -> None:
        """All of it goes; there are keys in it."""
        shutil.rmtree(self.root, ignore_errors=True)

    def __str__(self) -> str:
        commit = checkout.commit(self.clone)
        changes = f" with {count(len(self.copied), 'uncommitted file')} copied into it" if self.copied else ""
        return f"empty HOME, clean clone of {commit[:12]}{changes}"


_CLI = (sys.executable, "-m", "minipc.cli")


def clone(source: Path, place: Path) -> list[str]:
    """Clones a checkout at its commit; returns what differs from the commit, which is copied into the clone.

    So a rehearsal tries the code that is in front of whoever runs it; that a real clone would lack it is for the
    caller to say. Without git, everything is such a copy.
    """
    if checkout.commit(source) == "unknown":
        ignored = shutil.ignore_patterns(".venv", "reports", ".git", "__pycache__", ".*_cache", "*.bak")
        shutil.copytree(source, place, ignore=ignored, symlinks=True)
        return ["everything (no git checkout)"]
    _git("clone", "--quiet", "--no-hardlinks", str(source), str(place))
    _git("-C", str(place), "checkout", "--quiet", "--detach", checkout.commit(source))
    changed = checkout.changed_paths(source)
    for path in changed:
        (place / path).unlink(missing_ok=True)
        if (source / path).is_file():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, place / path)
    return changed


def _git(*argv: str) -> None:
    done = subprocess.run(
        ["git", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_END_S, check=False
    )
    if done.returncode:
        raise MinipcError(f"git {argv[0]} failed: {done.stderr.strip()}", "is this a whole checkout? `git fsck`")


def end(process: subprocess.Popen[bytes], sign: signal.Signals = signal.SIGINT) -> None:
    """Ends a process with all it started, and waits."""
    for each in (sign, signal.SIGKILL):
        try:
            os.killpg(process.pid, each)
            process.wait(timeout=20)
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue
        return
