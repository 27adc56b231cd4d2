"""The break-glass bundle for real: from the operator's computer to one with an empty home and a clean clone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minipc.core.paths import ROOT

PASSPHRASE = "orbit mango tundra velvet quilt"


class Computer:
    """A home and a clone; the CLI runs as its user would run it."""

    def __init__(self, folder: Path, remote: Path) -> None:
        self.home = folder / "home"
        self.clone = folder / "minipc"
        self.home.mkdir(parents=True)
        self.git("clone", "-q", str(remote), str(self.clone), cwd=folder)

    def git(self, *argv: str, cwd: Path | None = None) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *argv], cwd=cwd or self.clone, check=True, timeout=60)

    def minipc(self, *argv: str, stdin: str = "", code: int = 0) -> str:
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "PYTHONPATH": str(self.clone)}
        done = subprocess.run(
            [sys.executable, "-m", "minipc.cli.main", *argv],
            cwd=self.clone,
            env=environment,
            input=stdin,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=110,
        )
        assert done.returncode == code, done.stdout
        assert PASSPHRASE not in done.stdout
        return done.stdout


@pytest.fixture
def operator(tmp_path: Path) -> Computer:
    """A computer with a configured production, its secrets and its SSH key; nothing of that is committed."""
    computer = Computer(tmp_path / "one", ROOT)
    key = computer.home / ".ssh/id_ed25519"
    key.parent.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=20)
    production = computer.clone / "group_data/production.py"
    lines = [line for line in production.read_text().splitlines() if not line.startswith("host_operator_keys")]
    public = key.with_suffix(".pub").read_text().strip()
    production.write_text("\n".join([*lines, f"host_operator_keys = [{public!r}]", ""]))
    computer.minipc("secrets", "init")
    computer.minipc("secrets", "set", "alertmanager.slack_url", stdin="https://hooks.example.org/t0ken\n")
    return computer


def test_an_empty_home_and_a_clean_clone_become_the_operators_again(operator: Computer, tmp_path: Path) -> None:
    stick = tmp_path / "bundle.age"
    made = operator.minipc("bundle", "create", str(stick), stdin=PASSPHRASE)
    assert "opened again and compared" in made
    assert "NOT IN THE BUNDLE" not in made
    assert "it still matches" in operator.minipc("bundle", "check", "--open", stdin=PASSPHRASE)
    assert stick.stat().st_mode & 0o777 == 0o600
    assert b"AGE-SECRET-KEY" not in stick.read_bytes()

    blank = Computer(tmp_path / "two", ROOT)
    blank.minipc("secrets", "check", code=1)
    before = sorted(blank.home.rglob("*"))
    assert "passphrase is wrong" in blank.minipc("bundle", "open", str(stick), stdin="another one of these", code=1)
    assert [path for path in sorted(blank.home.rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]

    blank.minipc("bundle", "open", str(stick), stdin=PASSPHRASE)
    assert "none of the required ones missing" in blank.minipc("secrets", "check")
    blank.minipc("config", "production")
    for name in (".ssh/id_ed25519", ".ssh/id_ed25519.pub", ".config/minipc/age.key"):
        assert (blank.home / name).read_bytes() == (operator.home / name).read_bytes()
    for name in ("group_data/production.py", "inventory/production.py", "secrets/production.age"):
        assert (blank.clone / name).read_bytes() == (operator.clone / name).read_bytes()


def test_a_person_without_minipc_opens_it(operator: Computer, tmp_path: Path) -> None:
    """pyrage stands for `age -d`, which asks on a terminal only."""
    import pyrage

    stick = tmp_path / "bundle.age"
    operator.minipc("bundle", "create", str(stick), stdin=PASSPHRASE)
    (tmp_path / "b.tar").write_bytes(pyrage.passphrase.decrypt(stick.read_bytes(), PASSPHRASE))
    subprocess.run(["tar", "-xf", "b.tar"], cwd=tmp_path, check=True, timeout=20)
    assert "age -d -i age.key secrets.age" in (tmp_path / "README.txt").read_text()
    key = pyrage.x25519.Identity.from_str((tmp_path / "age.key").read_text().splitlines()[-1])
    assert b"postgres.password.monitoring: " in pyrage.decrypt((tmp_path / "secrets.age").read_bytes(), [key])
