"""`minipc init` through a real terminal, against a machine as Debian's installer leaves it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minipc.core.paths import ROOT, cache_dir
from rehearsal import lab
from rehearsal.second_controller import clone
from tests.lab.conftest import on

COMMAND = (sys.executable, "-m", "minipc.cli.main", "init")
PASSWORD, ROOT_PASSWORD = "account-secret", "root-secret"


@pytest.fixture
def installed(blank: lab.Machine) -> lab.Machine:
    """Return a machine with the installer's account; root logs in by password on its screen only."""
    on(blank, f"useradd --create-home --shell /bin/bash you; echo 'you:{PASSWORD}\nroot:{ROOT_PASSWORD}' | chpasswd")
    return blank


@pytest.fixture
def controller(tmp_path: Path) -> Path:
    """Return a clone on a computer whose account has neither keys nor state."""
    (tmp_path / "home").mkdir()
    clone(ROOT, tmp_path / "minipc")
    return tmp_path / "minipc"


def environment(controller: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": str(controller.parent / "home"),
        "PYTHONPATH": str(controller),
        "TERM": "xterm",
        "MINIPC_CACHE_DIR": str(cache_dir()),
    }


def converse(controller: Path, *exchanges: tuple[str, str]) -> tuple[int, str]:
    """Run init on a terminal; wait for each question and type its answer. Return exit code and output."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(controller)
        os.execve(COMMAND[0], COMMAND, environment(controller))
    output, at = "", 0
    for question, answer in [*exchanges, ("", "")]:
        deadline = time.monotonic() + 60
        while not question or question not in output[at:]:
            assert time.monotonic() < deadline, f"{question!r} was not asked:\n{output}"
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                output += os.read(terminal, 4096).decode(errors="replace").replace("\r", "")
            except OSError:  # the other end was closed
                break
        assert question in output[at:], f"{question!r} was not asked:\n{output}"
        if question:
            at = len(output)
            os.write(terminal, f"{answer}\n".encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


def answered(controller: Path, **answers: str) -> tuple[int, str]:
    """Run init with a file of answers, without a terminal."""
    file = controller.parent / "answers.yaml"
    file.write_text("".join(f"{key}: {value!r}\n" for key, value in answers.items()))
    file.chmod(0o600)
    done = subprocess.run(
        [*COMMAND, "--answers", str(file)],
        cwd=controller,
        env=environment(controller),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_person_answers_on_a_terminal(installed, controller):
    address = installed.operator_ipv4
    code, output = converse(
        controller,
        ("address of the mini PC", "you@10.77.0"),
        ("not an IP address", f"you@{address}"),
        ("screen show the same?", "yes"),
        ("Password of you@", "wrong"),
        ("Password of you@", PASSWORD),
        ("Password of root", ROOT_PASSWORD),
        ("off-site host", "none"),
        ("Image of your service", "ghcr.io/you/shop"),
        ("Public name of shop", ""),
    )
    assert code == 0, output
    assert installed.host_key_fingerprint in output
    assert PASSWORD not in output
    assert ROOT_PASSWORD not in output
    inventory = (controller / "inventory/production.py").read_text()
    assert f'target("minipc", address="{address}", key="~/.ssh/id_ed25519")' in inventory
    settings = (controller / "group_data/production.py").read_text()
    assert 'firewall_public_interfaces = ["public0"]' in settings
    assert 'firewall_operator_interfaces = ["operator0"]' in settings
    assert 'firewall_operator_networks = ["10.77.0.0/24"]' in settings
    assert "shop.example.org" in (controller / "services/shop.yaml").read_text()
    key = (controller.parent / "home/.ssh/id_ed25519.pub").read_text().split()[1]
    assert key in on(installed, "cat /root/.ssh/authorized_keys")
    assert on(installed, "id you 2>&1 || true").strip().endswith("no such user")
    assert (controller / "secrets/production.age").exists()

    edited = settings.replace("# firewall_operator_access", "host_journal_days = 40\n# firewall_operator_access")
    (controller / "group_data/production.py").write_text(edited)
    code, again = answered(controller)
    assert code == 0, again
    assert "wrote " not in again
    assert "-host_journal_days = 40" in again
    assert (controller / "group_data/production.py").read_text() == edited


def test_a_file_answers_and_a_wrong_one_changes_nothing(installed, controller):
    before = (controller / "inventory/production.py").read_text()
    good = {
        "machine": f"you@{installed.operator_ipv4}",
        "fingerprint": installed.host_key_fingerprint,
        "password": PASSWORD,
        "root_password": ROOT_PASSWORD,
        "service": "none",
    }
    other = "SHA256:" + "A" * 43
    refused = [
        ({"fingerprint": other}, 3, "not confirmed"),
        ({"password": "wrong"}, 3, "does not accept this password"),
        ({"root_password": "wrong"}, 3, "cannot become root"),
        ({"machine": "you@10.77.0"}, 1, "machine = "),
        ({"machine": "you@10.77.0.254"}, 4, "check address, power and network"),
    ]
    for change, expected, message in refused:
        code, output = answered(controller, **(good | change))
        assert (code, message in output) == (expected, True), output
        assert "Traceback" not in output
    on(installed, "install -d /srv/photos")
    code, output = answered(controller, **good)
    assert (code, "not blank: it has /srv/photos" in output) == (3, True), output
    assert (controller / "inventory/production.py").read_text() == before
    assert on(installed, "id -un you").strip() == "you"
    on(installed, "rmdir /srv/photos")
    code, output = answered(controller, **good)
    assert code == 0, output
    assert re.search(r"reachable from the internet: not known", output)


def test_too_little_disk_is_refused(lab_ready, controller):
    with lab.machine("test-init-small", disk_gb=1) as small:
        on(small, f"useradd --create-home you; echo 'you:{PASSWORD}\nroot:{ROOT_PASSWORD}' | chpasswd")
        answers = {"machine": f"you@{small.operator_ipv4}", "fingerprint": small.host_key_fingerprint}
        code, output = answered(controller, **answers, password=PASSWORD, root_password=ROOT_PASSWORD)
    assert (code, "too little disk" in output) == (3, True), output


def test_without_a_terminal_or_answers_it_is_refused(controller):
    done = subprocess.run(
        COMMAND, cwd=controller, env=environment(controller), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "--answers" in done.stderr
