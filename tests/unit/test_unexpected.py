"""What people and intruders change: each is planted among real files and found, and a machine without it is clean."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from minipc_machine import unexpected

PLACED = "/etc/systemd/system/caddy.service.d/minipc.conf"
EXPECTED = {
    "paths": [PLACED, "/root/.ssh/authorized_keys", "/etc/sysctl.d/60-minipc.conf"],
    "logins": ["root", "you", "postgres"],
    "apt": ["mirror.example.org"],
    "runtime": "podman",
    "psql": "",
}
FILES = {
    "etc/passwd": (
        "root:x:0:0::/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\nyou:x:1000:1000::/home/you:/bin/bash\n"
    ),
    "etc/shadow": "root:*:1::::::\nyou:!:1::::::\n",
    "etc/group": "root:x:0:\nsudo:x:27:\nyou:x:1000:you\n",
    "etc/cron.d/e2scrub_all": "30 3 * * 0 root true\n",
    "etc/apt/sources.list.d/debian.sources": "URIs: https://ftp.debian.org/debian https://mirror.example.org/debian\n",
    "etc/sysctl.d/60-minipc.conf": "# Written by minipc\nnet.ipv4.ip_forward = 1\nkernel.panic = 10\n",
    "proc/sys/net/ipv4/ip_forward": "1\n",
    "proc/sys/kernel/panic": "10\n",
    "root/.ssh/authorized_keys": "ssh-ed25519 AAAA\n",
    "usr/bin/bash": "",
    "usr/bin/sudo": "",
    "usr/lib/systemd/system/caddy.service": "",
    "usr/lib/systemd/system/postgresql@.service": "",
    "var/lib/dpkg/info/all.list": (
        "/.\n/bin/bash\n/usr/bin/sudo\n/etc/cron.d/e2scrub_all\n/lib/systemd/system/caddy.service\n"
        "/usr/lib/systemd/system/postgresql@.service\n"
    ),
    "var/lib/ucf/registry": "unattended-upgrades    /etc/apt/apt.conf.d/50unattended-upgrades\n",
    "etc/apt/apt.conf.d/50unattended-upgrades": "",
    "etc/modules": "",
    PLACED.lstrip("/"): "# Written by minipc\n",
    "proc/10/cgroup": "0::/system.slice/caddy.service\n",
    "proc/11/cgroup": "0::/system.slice/system-postgresql.slice/postgresql@17-main.service\n",
    "proc/666/cgroup": "0::/user.slice/user-0.slice/session-3.scope\n",
    "proc/667/cgroup": "0::/system.slice/helper.service\n",
}
LINKS = {
    "etc/systemd/system/multi-user.target.wants/caddy.service": "/lib/systemd/system/caddy.service",
    "etc/systemd/system/multi-user.target.wants/postgresql@17-main.service": "/lib/systemd/system/postgresql@.service",
    "etc/systemd/system/nothing.service": "/dev/null",
    "etc/modules-load.d/modules.conf": "../modules",
}
LISTENING = """tcp LISTEN 0 4096 *:443 *:* users:(("caddy",pid=10,fd=6))
tcp LISTEN 0 200 127.0.0.1:5432 0.0.0.0:* users:(("postgres",pid=11,fd=6))
tcp LISTEN 0 200 0.0.0.0:7000 0.0.0.0:* users:(("systemd",pid=1,fd=6))
udp UNCONN 0 0 0.0.0.0:51820 0.0.0.0:*
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root folder, and what programs print; a test changes both."""
    for name, content in FILES.items():
        write(tmp_path, name, content)
    for name, target in LINKS.items():
        link(tmp_path, name, target)
    (tmp_path / "usr/bin/sudo").chmod(0o4755)
    printed = {
        "dpkg --verify": "??5??????   /etc/sysctl.d/60-minipc.conf\nmissing     /usr/share/doc/x\n",
        "ss -Hltunp": LISTENING,
        "nft list tables": "table inet minipc\ntable inet minipc_loopback\ntable ip nat\n",
        "nft -s -t list table inet minipc": "rules",
        "nft -s -t list table inet minipc_loopback": "others",
        "unshare -n sh -c nft -f /etc/minipc/firewall.nft && nft -s -t list table inet minipc": "rules",
        "unshare -n sh -c nft -f /etc/minipc/loopback.nft && nft -s -t list table inet minipc_loopback": "others",
    }
    monkeypatch.setattr(unexpected, "_run", lambda argv, stdin="", accepted=(0,): printed[" ".join(argv)])
    return tmp_path, printed


def write(root, name, content="x", mode=0o644):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def link(root, name, target):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def add(root, name, line):
    with (root / name).open("a") as file:
        file.write(line)


def found(root, capsys, **changed):
    unexpected.report(EXPECTED | changed, str(root))
    return json.loads(capsys.readouterr().out)


def test_a_machine_that_nobody_touched_is_clean(machine, capsys):
    assert found(machine[0], capsys) == []


PLANTS = {
    "account hidden has uid 0": lambda root: add(root, "etc/passwd", "hidden:x:0:0::/root:/usr/sbin/nologin\n"),
    "account guest has the login shell /bin/sh": lambda root: add(root, "etc/passwd", "guest:x:9:9::/:/bin/sh\n"),
    "account guest needs no password": lambda root: add(root, "etc/shadow", "guest::1::::::\n"),
    "group sudo has the members guest": lambda root: write(root, "etc/group", "sudo:x:27:guest\n"),
    "authorised key in /home/you/.ssh/authorized_keys2": lambda root: write(
        root, "home/you/.ssh/authorized_keys2", "ssh-ed25519 BBBB\n"
    ),
    "file /etc/cron.d/backup belongs to no package and is not from minipc": lambda root: write(
        root, "etc/cron.d/backup", "* * * * * root true\n"
    ),
    "file /var/spool/cron/crontabs/root belongs to no package and is not from minipc": lambda root: write(
        root, "var/spool/cron/crontabs/root"
    ),
    # The words of ours do not make it ours.
    "file /etc/systemd/system/helper.service belongs to no package and is not from minipc": lambda root: write(
        root, "etc/systemd/system/helper.service", "# Written by minipc\n"
    ),
    "file /etc/systemd/system/caddy.service.d/z.conf belongs to no package and is not from minipc": lambda root: write(
        root, "etc/systemd/system/caddy.service.d/z.conf"
    ),
    "link /etc/systemd/system/helper.service leads to /usr/bin/helper, "
    "which belongs to no package and is not from minipc": (
        lambda root: (write(root, "usr/bin/helper"), link(root, "etc/systemd/system/helper.service", "/usr/bin/helper"))
    ),
    "file /usr/local/bin/ls belongs to no package and is not from minipc": lambda root: write(root, "usr/local/bin/ls"),
    "file /etc/sudoers.d/guest belongs to no package and is not from minipc": lambda root: write(
        root, "etc/sudoers.d/guest"
    ),
    "file /etc/ld.so.preload exists": lambda root: write(root, "etc/ld.so.preload"),
    "file /etc/cron.d/e2scrub_all is writable for everybody (mode 666)": lambda root: os.chmod(
        root / "etc/cron.d/e2scrub_all", 0o666
    ),
    "program /usr/bin/bash runs as another account (set-uid)": lambda root: (root / "usr/bin/bash").chmod(0o4755),
    "program /tmp/x runs as another account (set-uid)": lambda root: write(root, "tmp/x", mode=0o4755),
    "package source /etc/apt/sources.list is trusted without a signature": lambda root: write(
        root, "etc/apt/sources.list", "deb [trusted=yes] https://ftp.debian.org/debian trixie main\n"
    ),
    "package source /etc/apt/sources.list is evil.example.org": lambda root: write(
        root,
        "etc/apt/sources.list",
        "# deb http://old.example.org/ x\ndeb http://evil.example.org/ trixie main\n",
    ),
    "kernel setting net.ipv4.ip_forward is 0, configured is 1": lambda root: write(
        root, "proc/sys/net/ipv4/ip_forward", "0\n"
    ),
    "kernel setting kernel.panic is 0, configured is 10": lambda root: write(root, "proc/sys/kernel/panic", "0\n"),
}


@pytest.mark.parametrize("sentence", PLANTS)
def test_each_planted_change_is_found_and_nothing_else(machine, capsys, sentence):
    PLANTS[sentence](machine[0])
    assert found(machine[0], capsys) == [sentence]


@pytest.mark.parametrize(
    ("command", "line", "sentence"),
    [
        ("dpkg --verify", "??5?????? c /etc/sudoers", "file /etc/sudoers of a package was changed"),
        ("dpkg --verify", "??5??????   /usr/bin/ss", "file /usr/bin/ss of a package was changed"),
        (
            "ss -Hltunp",
            'tcp LISTEN 0 5 0.0.0.0:8888 0.0.0.0:* users:(("python3",pid=666,fd=3))',
            "program python3 listens on tcp 0.0.0.0:8888, started in /user.slice/user-0.slice/session-3.scope",
        ),
        (
            "ss -Hltunp",
            'udp UNCONN 0 0 *:53 *:* users:(("helper",pid=667,fd=3))',
            "program helper listens on udp *:53, started in /system.slice/helper.service",
        ),
        ("nft list tables", "table inet door", "firewall table inet door is not from minipc"),
        (
            "nft -s -t list table inet minipc",
            "tcp dport 8888 accept",
            "firewall table inet minipc differs from /etc/minipc/firewall.nft",
        ),
    ],
)
def test_what_programs_report_is_found(machine, capsys, command, line, sentence):
    root, printed = machine
    printed[command] += f"{line}\n"
    assert found(root, capsys) == [sentence]


def test_what_cannot_be_asked_is_named_and_the_rest_is_asked(machine, capsys):
    root, printed = machine
    del printed["nft list tables"]
    (root / "usr/bin/bash").chmod(0o4755)
    said = found(root, capsys)
    assert said == [
        "could not look for firewall: KeyError: 'nft list tables'",
        "program /usr/bin/bash runs as another account (set-uid)",
    ]


def test_a_flood_is_cut(machine, capsys):
    for number in range(60):
        write(machine[0], f"etc/cron.d/job{number}")
    said = found(machine[0], capsys)
    assert len(said) == unexpected.MOST + 1
    assert "files: 10 more" in said


def test_it_runs_alone_on_a_machine_without_minipc(tmp_path):
    with open(unexpected.__file__, encoding="utf-8") as file:
        source = file.read()
    expected = json.dumps(EXPECTED | {"psql": "exit 3"})
    text = f"{source}\nLIMIT_S = 1\nreport(json.loads({expected!r}), {str(tmp_path)!r})\n"
    done = subprocess.run([sys.executable, "-I", "-"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "could not look for database: ValueError: sh ended with 3: " in json.loads(done.stdout)
