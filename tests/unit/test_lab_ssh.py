"""ssh_config and known_hosts, as ssh itself understands them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rehearsal.lab.machine import Machine
from rehearsal.lab.ssh import CONTROL_DIR, render_known_hosts, render_ssh_config

MINI = Machine(name="mini", index=0, disk_gb=8, image="/image", host_key="ssh-ed25519 AAAA")
OTHER = Machine(name="mini-2", index=1, disk_gb=8, image="/image", host_key="ssh-ed25519 BBBB", ssh_port=2222)


def resolved(tmp_path: Path, alias: str) -> dict[str, str]:
    """Return the options that `ssh -G` reads from the file."""
    config = tmp_path / "ssh config"
    config.write_text(render_ssh_config([MINI, OTHER], tmp_path / "a key", tmp_path / "known hosts"))
    done = subprocess.run(["ssh", "-G", "-F", config, alias], capture_output=True, text=True, check=True, timeout=20)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_ssh_reads_the_alias(tmp_path: Path) -> None:
    options = resolved(tmp_path, "mini-2")
    assert options["hostname"] == OTHER.operator_ipv4
    assert options["port"] == "2222"
    assert options["user"] == "root"
    assert options["identityfile"] == str(tmp_path / "a key")
    assert options["userknownhostsfile"] == str(tmp_path / "known hosts")


def test_nothing_is_trusted_on_first_use(tmp_path: Path) -> None:
    for alias in ("mini", "a-stranger"):
        options = resolved(tmp_path, alias)
        assert options["stricthostkeychecking"] == "true"
        assert options["globalknownhostsfile"] == "/dev/null"
        assert options["updatehostkeys"] == "false"
        assert options["batchmode"] == "yes"


def test_connections_are_shared_and_the_socket_path_is_short(tmp_path: Path) -> None:
    options = resolved(tmp_path, "mini")
    assert options["controlmaster"] == "auto"
    assert options["controlpersist"] == "60"
    temporary_suffix = 17  # ssh appends "." and 16 characters while it creates the socket
    assert len(f"{CONTROL_DIR}/{'m' * 32}-{'u' * 32}") + temporary_suffix <= 107


def test_known_hosts_pins_alias_and_address() -> None:
    first, second = render_known_hosts([MINI, OTHER]).splitlines()
    assert first == f"mini,{MINI.operator_ipv4} ssh-ed25519 AAAA"
    assert second == f"[mini-2]:2222,[{OTHER.operator_ipv4}]:2222 ssh-ed25519 BBBB"
