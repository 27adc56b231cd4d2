"""`minipc init`: its questions, what it finds out, what it refuses, and the files it writes."""

from __future__ import annotations

import json
import runpy
import socket
import subprocess
import threading
from ipaddress import IPv4Address
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from minipc.config import load
from minipc.core import paths
from minipc.core.errors import ConfigError, RefusedError, SecretError
from minipc.core.paths import ROOT
from minipc.remote import first_login, router
from minipc.remote.first_login import NeedsRootPasswordError, WrongPasswordError
from minipc.remote.host_keys import fingerprint_of
from minipc.remote.inventory import target
from minipc.remote.pins import Pin, write_pin
from playbooks import init, init_files, storage_box
from playbooks.init_questions import QUESTIONS, Login, Questions, own_name, read_answers

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1dhmzv5XbTqQ9n9SbxHhBkhZBcVPGhWGf2b0OlzPPd"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA0Xb5nVxq6p2pQb5DkJmC0Yx5vJ1E6e3c9T1b8jHq1b"
LOGIN = Login("you", "192.0.2.10")


def test_it_asks_at_most_ten_questions_each_with_a_reason():
    assert len(QUESTIONS) <= 10
    assert all(each.reason.endswith(".") or ": " in each.reason for each in QUESTIONS.values())


# --- a typo in each question: the message says what is allowed, and a person is asked again ---------------------------

TYPOS = [
    ("machine", "192.168.1.10", "root@192.168.1.10"),
    ("machine", "you@192.168.1", "not an IP address"),
    ("fingerprint", "SHA256:abc", "43 characters"),
    ("offsite", "offsite.example.org", "root@offsite.example.org"),
    ("offsite", "s3://s3.example.org/backups", "allowed: s3://REGION@ENDPOINT/BUCKET"),
    ("offsite", "s3://eu-1@s3.example.org/My_Backups", "should match pattern"),
    ("offsite_fingerprint", "yse", "allowed: yes, no"),
    ("service", "ghcr.io/you/shop:v1", "did you mean 'ghcr.io/you/shop'"),
    ("service", "docker-compos.yml", "there is no file"),
    ("domain", "https://Shop.example.org/", "did you mean 'shop.example.org'"),
]
NAMES = {
    "login": "you@192.0.2.10",
    "service": "shop",
    "zone": "example.org",
    "address": "192.0.2.10",
    "found": "SHA256:x",
}


@pytest.mark.parametrize(("key", "typed", "message"), TYPOS)
def test_a_typo_in_a_file_of_answers_is_refused(key, typed, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as caught:
        Questions({key: typed}).ask(key, **NAMES)
    assert key in caught.value.what


@pytest.mark.parametrize(("key", "typed", "message"), TYPOS)
def test_a_person_is_asked_again_after_a_typo(key, typed, message):
    right = {"machine": "you@192.0.2.10", "domain": "shop.example.org"}.get(key, "no" if "finger" in key else "none")
    said = asked(key, f"{typed}\n{right}\n")
    assert message in said
    assert said.count(QUESTIONS[key].text.format(**NAMES)) == 2


@pytest.mark.parametrize("key", [key for key, each in QUESTIONS.items() if each.hidden])
def test_a_secret_is_neither_shown_nor_stored(key):
    questions = Questions(None)
    assert "hunter2" not in asked(key, "hunter2\n", questions)
    assert questions.given == {}


def asked(key: str, typed: str, questions: Questions | None = None) -> str:
    """Return the terminal's output of one question."""
    questions = questions or Questions(None)

    @click.command()
    def command() -> None:
        questions.ask(key, **NAMES)

    done = CliRunner().invoke(command, input=typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_bucket_is_an_answer_for_the_off_site_host():
    answer = Questions({"offsite": "s3://eu-1@s3.example.org:9000/backups"}).ask("offsite")
    assert answer == {"endpoint": "s3.example.org:9000", "bucket": "backups", "region": "eu-1"}
    assert load("lab", offsite_kind="s3", offsite_s3=answer).has_offsite


BOX = {"user": "u1", "host": "box.example.org", "port": "23", "path": "/home/minipc"}


def test_a_storage_box_is_an_answer_for_the_off_site_host(monkeypatch):
    monkeypatch.setattr(storage_box.storage_box, "host_keys", lambda *_: [KEY, OTHER])
    shown = {fingerprint_of(KEY), fingerprint_of(OTHER)}
    answers = {"offsite": "sftp://u1@box.example.org:23/home/minipc/", "offsite_fingerprint": ", ".join(shown)}
    questions = Questions(answers)
    assert questions.ask("offsite") == BOX
    sftp = storage_box.confirmed(questions, BOX)
    assert load("lab", offsite_kind="sftp", offsite_sftp=sftp).has_offsite
    for given in ("yes", fingerprint_of(KEY), "no"):
        with pytest.raises(RefusedError, match="not confirmed"):
            storage_box.confirmed(Questions({"offsite_fingerprint": given}), BOX)


@pytest.mark.parametrize("given", ["sftp://u1@box.example.org", "sftp://u1@box/home", "sftp://u1@b.example.org:0/home"])
def test_a_storage_box_that_is_not_one_is_refused(given):
    with pytest.raises(ConfigError):
        Questions({"offsite": given}).ask("offsite")


def test_the_last_answer_is_the_default():
    questions = Questions({}, before={"machine": "you@192.0.2.10", "fingerprint": "yes"})
    assert questions.ask("machine") == LOGIN
    assert Questions({}).ask("fingerprint", **NAMES) == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [("machin: you@192.0.2.10\n", "unknown machin"), ("machine: 5\n", "key: text"), ("- a\n", "key: text")],
)
def test_a_wrong_file_of_answers_is_refused(tmp_path, text, message):
    (tmp_path / "answers.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_answers(tmp_path / "answers.yaml")


def test_a_file_with_a_password_must_be_private(tmp_path):
    file = tmp_path / "answers.yaml"
    file.write_text("password: hunter2\n")
    file.chmod(0o644)
    with pytest.raises(SecretError):
        read_answers(file)
    file.chmod(0o600)
    assert read_answers(file) == {"password": "hunter2"}


@pytest.mark.parametrize(
    ("source", "name"),
    [("ghcr.io/you/My_Shop", "my-shop"), (Path("/home/you/shop/docker-compose.yml"), "shop"), ("7up", "up")],
)
def test_a_service_is_named_after_its_image_or_folder(source, name):
    assert own_name(source) == name


# --- the host key ---------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with the files as they are shipped."""
    for name in (init_files.INVENTORY, init_files.GROUP_DATA):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text((paths.ROOT / name).read_text())
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def scanned(monkeypatch):
    monkeypatch.setattr(init, "scan", lambda address, port: KEY)


def compare(answers) -> Pin:
    return init._compared(Questions(answers), "minipc", LOGIN, "")


def test_a_host_key_is_accepted_only_if_it_is_the_given_one(repository, scanned):
    assert compare({"fingerprint": fingerprint_of(KEY)}) == Pin(host_key=KEY)
    for given in ({"fingerprint": fingerprint_of(OTHER)}, {"fingerprint": "yes"}, {}):
        with pytest.raises(RefusedError, match="not confirmed"):
            compare(given)


def test_a_pinned_machine_is_not_asked_about_and_another_one_is_refused(repository, scanned):
    (repository / "inventory").mkdir(exist_ok=True)
    write_pin("minipc", Pin(host_key=KEY, identity="one"), repository / "inventory/pins.json")
    assert compare({}).identity == "one"
    write_pin("minipc", Pin(host_key=OTHER, identity="one"), repository / "inventory/pins.json")
    with pytest.raises(RefusedError, match="pinned is"):
        compare({"fingerprint": fingerprint_of(KEY)})


# --- the first login ------------------------------------------------------------------------------------------------


@pytest.fixture
def admitted(monkeypatch):
    """Lets `admit_key` answer one after the other, and returns how it was called."""
    calls: list[dict[str, str]] = []
    answers: list[Exception | None] = []

    def admit(account, address, **options):
        calls.append(options)
        answer = answers.pop(0)
        if answer:
            raise answer

    monkeypatch.setattr(init, "admit_key", admit)
    return calls, answers


def test_a_wrong_password_in_a_file_ends_it(admitted):
    calls, answers = admitted
    answers += [WrongPasswordError("you@192.0.2.10 does not accept this password")]
    with pytest.raises(WrongPasswordError):
        init._admit(Questions({"password": "wrong"}), LOGIN, Pin(host_key=KEY), KEY, "")
    assert len(calls) == 1


def test_no_password_says_what_to_do(admitted):
    with pytest.raises(RefusedError, match="does not accept your key") as caught:
        init._admit(Questions({}), LOGIN, Pin(host_key=KEY), KEY, "")
    assert "ssh-copy-id" in caught.value.next_step


def test_without_sudo_the_password_of_root_is_used(admitted):
    calls, answers = admitted
    answers += [NeedsRootPasswordError("no sudo"), None]
    init._admit(Questions({"password": "a", "root_password": "b"}), LOGIN, Pin(host_key=KEY), KEY, "")
    assert [call.get("root_password") for call in calls] == [None, "b"]


class Channel:
    """A session whose program has ended before the password is written."""

    def __init__(self, status: int, said: str) -> None:
        self.channel, self._status, self._said = self, status, said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def exec_command(self, command, timeout):
        return self, self, self

    def write(self, text):
        raise OSError("Socket is closed")

    def recv_exit_status(self):
        return self._status

    def read(self):
        return self._said.encode()


@pytest.mark.parametrize(
    ("status", "root_password", "error"),
    [(127, "", NeedsRootPasswordError), (1, "wrong", WrongPasswordError), (0, "right", None)],
)
def test_a_program_that_ends_early_is_judged_by_its_exit_status(monkeypatch, status, root_password, error):
    monkeypatch.setattr(first_login, "_connect", lambda *_: Channel(status, "su: Authentication failure"))
    options = {"host_key": KEY, "public_key": KEY, "password": "a", "root_password": root_password}
    if error:
        with pytest.raises(error):
            first_login.admit_key("you", "192.0.2.10", **options)
    else:
        first_login.admit_key("you", "192.0.2.10", **options)


# --- what the machine says ------------------------------------------------------------------------------------------

ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
    {"ifname": "enp1s0", "addr_info": [{"local": "192.168.1.10", "prefixlen": 24, "scope": "global"}]},
    {"ifname": "enp2s0", "addr_info": [{"local": "203.0.113.20", "prefixlen": 24, "scope": "global"}]},
]


def look(monkeypatch, **changes: str) -> init.Seen:
    values = {
        "debian": "debian 13",
        "arch": "amd64",
        "memory": "7900",
        "disk": "60000",
        "connection": "192.168.1.5 40000 192.168.1.10 22",
        "addresses": json.dumps(ADDRESSES),
        "routes": json.dumps([{"dev": "enp2s0", "gateway": "203.0.113.1"}]),
        "disks": "nvme0n1 500107862016 disk",
        "traces": "",
        "identity": "",
    } | changes
    answer = f"\n{init._SECTION}\n".join(values.values()).encode()
    done = subprocess.CompletedProcess([], 0, answer, b"")
    monkeypatch.setattr(init.ssh, "run", lambda *_, **__: done)
    monkeypatch.setattr(init.ssh, "close", lambda *_: None)
    return init._look(target("minipc", "192.168.1.10", pin=Pin(host_key=KEY)), Pin(host_key=KEY, identity="ours"))


def test_interfaces_networks_and_disks_are_found(monkeypatch):
    seen = look(monkeypatch)
    assert seen.machine.public_interface == "enp2s0"
    assert seen.machine.operator_interface == "enp1s0"
    assert seen.machine.networks == ("192.168.1.0/24",)
    assert seen.disks == ("nvme0n1 500 GB",)


def test_a_client_from_elsewhere_is_one_address(monkeypatch):
    assert look(monkeypatch, connection="198.51.100.7 4 203.0.113.20 22").machine.networks == ("198.51.100.7/32",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"debian": "debian 12"}, "runs debian 12"),
        ({"disk": "900"}, "too little disk: 0.9 GB"),
        ({"memory": "512"}, "512 MB of memory"),
        ({"arch": "armhf"}, "armhf"),
        ({"traces": "/srv/photos"}, "not blank: it has /srv/photos"),
        ({"traces": "/etc/minipc", "identity": "another"}, "not blank"),
    ],
)
def test_a_machine_that_cannot_be_used_is_refused(monkeypatch, changes, message):
    with pytest.raises(RefusedError, match=message):
        look(monkeypatch, **changes)


def test_our_own_machine_is_looked_at_again(monkeypatch):
    assert look(monkeypatch, traces="/etc/minipc /srv/x", identity="ours").arch == "amd64"


# --- CGNAT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "outside", "verdict"),
    [
        (None, "203.0.113.9", None),
        ("100.64.3.4", None, False),
        ("192.168.178.2", "93.184.216.34", False),
        ("93.184.216.34", "93.184.216.34", True),
        ("93.184.216.34", "93.184.216.35", False),
        ("93.184.216.34", None, None),
    ],
)
def test_cgnat_is_found_or_not_known(own, outside, verdict):
    found, why = router.reachable_from_internet(IPv4Address(own) if own else None, outside)
    assert found is verdict
    assert why


def test_a_router_is_asked_for_its_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer() -> None:
            _, client = server.recvfrom(16)
            server.sendto(b"\0\x80\0\0" + bytes(4) + IPv4Address("100.64.3.4").packed, client)

        thread = threading.Thread(target=answer)
        thread.start()
        assert router.external_address("127.0.0.1", server.getsockname()[1]) == IPv4Address("100.64.3.4")
        thread.join()


def test_a_router_that_is_silent_is_not_known(monkeypatch):
    monkeypatch.setattr(router, "TIMEOUT_S", 0.01)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        assert router.external_address("127.0.0.1", server.getsockname()[1]) is None


# --- the files ------------------------------------------------------------------------------------------------------

MACHINE = init_files.Machine("192.168.1.10", "enp1s0", "enp1s0", ("192.168.1.0/24",))
REMOTE = init_files.Machine("203.0.113.20", "eth0", "eth0", ("198.51.100.7/32",))


def files(machine=MACHINE) -> dict[str, str]:
    key = Path("/keys/id_ed25519")
    return {
        init_files.INVENTORY: init_files.inventory_text(machine, REMOTE, key, hosts_repository=True),
        init_files.GROUP_DATA: init_files.group_text(machine, f"{KEY} you", {"backups_offsite": "offsite"}),
    }


def write_all(machine=MACHINE) -> dict[str, str]:
    return {name: init_files.write(name, text) for name, text in files(machine).items()}


def test_the_examples_are_replaced_and_the_second_time_nothing_changes(repository):
    assert all(text.startswith("wrote ") for text in write_all().values())
    for name, text in files().items():
        assert (repository / name).read_text() == text
        compile(text, name, "exec")
    assert set(write_all().values()) == {""}


def test_what_is_written_is_a_valid_configuration_of_both_machines(repository):
    write_all()
    (repository / "group_data/all.py").write_text((ROOT / "group_data/all.py").read_text())
    lists = runpy.run_path(str(repository / init_files.INVENTORY))
    assert lists["offsite"] == ["offsite"]
    found = {}
    for alias, data in lists["production"]:
        own = {key: value for key, value in data.items() if not key.startswith("ssh_")}
        found[alias] = load("production", repository / "group_data", **own)
    assert found["minipc"].firewall.public_interfaces == ["enp1s0"]
    assert found["minipc"].backups.offsite == "offsite"
    assert found["offsite"].firewall.operator_networks == ["198.51.100.7/32"]
    assert found["offsite"].offsite.deploy_repository
    assert lists["production"][1][1]["ssh_hostname"] == "203.0.113.20"


def test_edits_are_kept_and_what_changed_is_merged(repository):
    write_all()
    path = repository / init_files.GROUP_DATA
    path.write_text(path.read_text() + 'host_timezone = "Europe/Berlin"\n')
    inventory = repository / init_files.INVENTORY
    inventory.write_text(inventory.read_text().replace('"192.168.1.10"', '"mini.lan"'))
    moved = init_files.Machine("192.168.1.99", "enp9s0", "enp1s0", ("192.168.1.0/24",))
    said = write_all(moved)
    assert 'host_timezone = "Europe/Berlin"' in path.read_text()
    assert 'firewall_public_interfaces = ["enp9s0"]' in path.read_text()
    assert '+firewall_public_interfaces = ["enp9s0"]' in said[init_files.GROUP_DATA]
    assert '"mini.lan"' in inventory.read_text(), "both changed the address: the user's stays"
    assert '+    target("minipc", address="192.168.1.99"' in said[init_files.INVENTORY]


def test_files_that_init_did_not_write_are_kept(repository):
    path = repository / init_files.GROUP_DATA
    mine = path.read_text().replace(init_files.EXAMPLE, "mine")
    path.write_text(mine)
    for _ in range(2):
        assert "yours (kept)" in write_all()[init_files.GROUP_DATA]
        assert path.read_text() == mine
