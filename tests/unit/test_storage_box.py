"""A storage box: what OpenSSH's `sftp` says about it, and its settings. tests/lab/test_storage_box.py has a server."""

from __future__ import annotations

import os
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from minipc.cli import recovery
from minipc.config import load, offsite
from minipc.core.errors import ConfigError, MinipcError
from minipc.secrets import Secret, open_store
from minipc.secrets.catalogue import SFTP_KEY
from minipc.secrets.ed25519 import public_key
from minipc.secrets.generate import ssh_private_key
from minipc_machine import repositories
from minipc_machine import storage_box as asking
from minipc_machine.program import FailedError
from minipc_machine.repositories import ResticSettings
from minipc_machine.storage_box import Content, StorageBox
from playbooks import preflight, storage_box

KEY, OTHER = (public_key(Secret(SFTP_KEY, ssh_private_key())) for _ in range(2))
SFTP = {"host": "box.example.org", "port": 23, "user": "u1", "path": "/home/minipc", "host_keys": [KEY]}
BOX = StorageBox("box.example.org", 23, "u1", "/home/minipc", [KEY], 100)
EXTENSION = 'debug2: Server supports extension "fsync@openssh.com" revision 1\n'
OFFERED = "debug2: host key algorithms: ssh-ed25519\ndebug2: host key algorithms: ecdsa-sha2-nistp256,ssh-ed25519\n"
PRINT = "SHA256:" + "a" * 43
LISTING = """sftp> -mkdir /home/minipc
sftp> ls -1 /home/minipc
/home/minipc/pgbackrest
/home/minipc/restic
sftp> -df /home/minipc
        Size         Used        Avail       (root)    %Capacity
     6139328      1048576      5090752      5090752          17%
"""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"host": "sftp://box.example.org"}, "did you mean 'box.example.org'?"),
        ({"port": 0}, "offsite_sftp[port]"),
        ({"user": "root;reboot"}, "offsite_sftp[user]"),
        ({"path": "/"}, "offsite_sftp[path]"),
        ({"path": "/home/../etc"}, "offsite_sftp[path]"),
        ({"path": "backups"}, "offsite_sftp[path]"),
        ({"host_keys": []}, "offsite_sftp[host_keys]"),
        ({"host_keys": ["SHA256:abc"]}, "not an SSH public key"),
        ({"password": "hunter2"}, "offsite_sftp[password]: unknown key"),
    ],
)
def test_a_wrong_description_of_the_box_is_refused(changed, message):
    assert load("lab", offsite_kind="sftp", offsite_sftp=SFTP).has_offsite
    with pytest.raises(ConfigError) as caught:
        load("lab", offsite_kind="sftp", offsite_sftp=SFTP | changed)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_there_is_a_box_or_an_off_site_host_and_not_both():
    with pytest.raises(ConfigError, match="keeps the backups in a storage box"):
        load("lab", offsite_kind="sftp", offsite_sftp=SFTP, backups_offsite="offsite")


@pytest.fixture
def server(monkeypatch):
    """Answer each command of sftp; return the answers by their first word, and the programs that were started."""
    answers = {"-mkdir": (0, LISTING, EXTENSION), "ssh-keyscan": (0, f"[box.example.org]:23 {KEY}\n", "# box\n")}
    started = []

    def run(argv, _limit_s, stdin=""):
        started.append((argv, stdin))
        first = stdin.split()[0] if stdin else argv[0]
        words = [line.split() for line in stdin.splitlines()]
        copies = {
            name: Path(path) for name, path, *_ in ((each[0], each[-1 if each[0] == "get" else 1]) for each in words)
        }
        if "get" in copies:
            copies["get"].write_bytes(copies["put"].read_bytes())
        return subprocess.CompletedProcess(argv, *answers.get(first, (0, "", EXTENSION)))

    monkeypatch.setattr(asking, "_run", run)
    return answers, started


def test_a_box_with_our_backups_and_space_is_fine(server):
    found = asking.examine(BOX, "/key")
    assert found == Content(["pgbackrest", "restic"], 4971)
    assert str(found) == "the storage box can be used; 4971 MB are free"
    for argv, _ in server[1]:
        assert argv[-3:] == ["-P", "23", "u1@box.example.org"]
        assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "IdentityAgent=none"} <= set(argv)


@pytest.mark.parametrize(
    ("first", "answer", "message"),
    [
        ("-mkdir", (255, "", "ssh: connect to host box port 23: Connection refused\n"), "it cannot be reached"),
        ("-mkdir", (255, "", "kex_exchange: Not allowed at this time\n"), "refuses this address for some minutes"),
        ("-mkdir", (255, "", "u1@box: Permission denied (publickey).\n"), "does not accept the mini PC's key: `minipc"),
        ("-mkdir", (255, "", f"sent is\n{PRINT}.\nHost key verification failed.\n"), f"host key {PRINT}, which is not"),
        (
            "-mkdir",
            (0, LISTING, EXTENSION + OFFERED),
            "a host key of the type ecdsa-sha2-nistp256, which is not pinned",
        ),
        ("-mkdir", (255, "", "subsystem request failed on channel 0\n"), "has no SFTP for this account"),
        ("-mkdir", (1, "", EXTENSION + 'Can\'t ls: "/home/minipc" not found\n'), "create the folder above it"),
        ("-mkdir", (0, LISTING, ""), "has no command fsync@openssh.com"),
        (
            "-mkdir",
            (0, LISTING.replace("minipc/restic", "minipc/photos"), EXTENSION),
            "used by something else: it contains 'photos'",
        ),
        ("-mkdir", (0, LISTING.replace(" 5090752 ", " 50907 "), EXTENSION), "is full: 49 MB are free, 100 MB must be"),
        ("put", (1, "", 'dest open "/x": Permission denied\n'), "cleaned up: give the account the right"),
        ("put", (1, "", 'write remote "/x": Failure\n'), "cleaned up: it is probably full"),
        ("put", (1, "", "remote rename: Operation unsupported\n"), "lacks a command"),
    ],
)
def test_what_is_wrong_with_a_box_is_said(server, first, answer, message):
    server[0][first] = answer
    with pytest.raises(FailedError, match=message):
        asking.examine(BOX, "/key")


def test_a_server_that_does_not_say_how_full_it_is_can_be_used(server):
    server[0]["-mkdir"] = (0, "/home/minipc/restic\n", EXTENSION)
    assert "does not say" in str(asking.examine(BOX, "/key"))


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setattr(storage_box, "load", lambda _, names: {name: Secret(name, "hunter2") for name in names})
    return preflight.Target("mini", {}, load("lab", offsite_kind="sftp", offsite_sftp=SFTP, offsite_free_mb=100))


def test_the_preflight_stops_at_a_full_box_and_shows_no_key(server, target):
    subject = preflight._Subject(target, None)
    assert preflight._storage_box(subject) == ""
    server[0]["-mkdir"] = (0, LISTING.replace(" 5090752 ", " 50907 "), EXTENSION)
    with pytest.raises(MinipcError, match="is full") as caught:
        preflight._storage_box(subject)
    assert "hunter2" not in str(caught.value)
    assert not [argv for argv, _ in server[1] if "hunter2" in str(argv)]


def test_new_passphrases_need_a_new_folder(server, target):
    with pytest.raises(ConfigError, match="contains pgbackrest, restic"):
        preflight.demand_empty(target)
    server[0]["-mkdir"] = (0, "", EXTENSION)
    preflight.demand_empty(target)


def test_restic_reaches_the_box_with_the_machines_key_and_pins():
    settings = load("lab", offsite_kind="sftp", offsite_sftp=SFTP)
    assert offsite.restic_url(BOX) == "sftp://u1@box.example.org:23//home/minipc/restic"
    command = offsite.restic_command(settings)
    assert "--cacert" not in command
    assert "'--option=sftp.args=-F none -i /etc/pgbackrest/sftp_key -o BatchMode=yes" in command
    assert offsite.storage_name(settings) == BOX.url


def test_each_thing_that_a_box_cannot_do_has_a_substitute():
    for settings in (
        load("lab", offsite_kind="sftp", offsite_sftp=SFTP),
        load("lab", offsite_kind="s3", offsite_s3={"endpoint": "s3.example.org", "bucket": "bbb", "region": "eu"}),
    ):
        lacking = offsite.not_provided(settings)
        assert set(lacking) <= set(offsite.ONLY_A_HOST)
        assert all(why.partition("cannot do it; ")[2] for why in lacking.values())
    assert offsite.not_provided(load("lab")) == {}


def test_the_known_hosts_have_each_key_with_and_without_the_port():
    lines = replace(BOX, host_keys=[KEY, OTHER]).known_hosts.splitlines()
    assert lines == [f"{host} {key}" for key in (KEY, OTHER) for host in ("[box.example.org]:23", "box.example.org")]


def test_the_commands_print_what_the_box_and_the_settings_need(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    store = open_store("lab")
    store.prepare()
    store.set_many({SFTP_KEY: ssh_private_key()})
    done = CliRunner().invoke(recovery.backup, ["key", "--inventory", "lab"], catch_exceptions=False)
    assert done.output == f"{public_key(store.get(SFTP_KEY))} minipc\n"
    done = CliRunner().invoke(recovery.backup, ["host-keys", "box.example.org:23", "--inventory", "lab"])
    assert f"# {asking.fingerprint(KEY)}" in done.output
    assert f'"host_keys": [\n    "{KEY}"\n]' in done.output
    assert server[1][-1][0][-3:] == ["-t", "ed25519,ecdsa,rsa", "box.example.org"]
    done = CliRunner().invoke(recovery.backup, ["host-keys", "box.example.org:x", "--inventory", "lab"])
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize(("script", "reachable"), [("exit 0", True), ("exit 10", True), ("exit 1", False)])
def test_restics_server_is_asked_with_a_login_and_a_missing_repository_is_no_outage(
    tmp_path, monkeypatch, script, reachable
):
    """A connection without a login counts as an attack at an SSH server."""
    (tmp_path / "restic").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/said\n{script}\n')
    (tmp_path / "restic").chmod(0o755)
    (tmp_path / "repository").write_text(f"{offsite.restic_url(BOX)}\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(repositories.socket, "create_connection", None)
    options = offsite.restic_options(load("lab", offsite_kind="sftp", offsite_sftp=SFTP))
    config = SimpleNamespace(restic=ResticSettings(str(tmp_path / "repository"), "p", "", options=options), processes=1)
    with nullcontext() if reachable else pytest.raises(FailedError, match="ended with 1"):
        repositories.ensure_reachable(config)
    said = (tmp_path / "said").read_text().splitlines()
    assert said[-2:] == ["cat", "config"]
    assert "--cacert" not in said
    assert f"--option={options[0]}" in said


def test_two_checks_at_once_do_not_delete_each_others_file(server):
    for _ in range(2):
        asking.examine(BOX, "/key")
    written = [stdin.split()[2] for _, stdin in server[1] if stdin.startswith("put")]
    assert len(set(written)) == 2


def test_a_probe_that_failed_leaves_nothing_behind(server):
    server[0]["put"] = (1, "", 'write remote "/x": Failure\n')
    with pytest.raises(FailedError, match="full"):
        asking.examine(BOX, "/key")
    written = next(stdin.split()[2] for _, stdin in server[1] if stdin.startswith("put"))
    assert server[1][-1][1] == f"-rm {written}*\n"
