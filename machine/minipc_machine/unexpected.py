"""Find what people and intruders leave on a machine: what neither a Debian package nor minipc put there.

`minipc drift` sends this file to the machine and runs it there with `report`: what is installed on the machine could
have been changed, too. It needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Files here run programs, or admit somebody.
FOLDERS = (
    *("etc/systemd/system", "etc/systemd/user", "usr/local/lib/systemd", "usr/lib/systemd/system"),
    *("etc/cron.d", "etc/cron.hourly", "etc/cron.daily", "etc/cron.weekly", "etc/cron.monthly", "var/spool/cron"),
    *("etc/apt/sources.list.d", "etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/trusted.gpg.d"),
    *("etc/sudoers.d", "etc/ssh/sshd_config.d", "etc/pam.d", "etc/profile.d", "etc/sysctl.d", "etc/modules-load.d"),
    *("etc/udev/rules.d", "etc/ld.so.conf.d", "etc/update-motd.d", "etc/containers/systemd"),
    *("usr/local/bin", "usr/local/sbin"),
)
# Such a file exists only if somebody made it.
FILES = ("etc/ld.so.preload", "etc/rc.local", "etc/hosts.equiv")
# Programs of packages, Debian's installer or `minipc image` make them.
GENERATED = re.compile(
    r"etc/(apt/sources\.list\.d/debian\.sources|pam\.d/common-[\w-]+|apt/apt\.conf\.d/\d\dCDROMs?"
    r"|apt/apt\.conf\.d/(00trustcdrom|00aptitude|02autoremove-postgresql|20keep-downloads)|sysctl\.d/99-sysctl\.conf)|.*/\.placeholder|var/spool/cron/\w+/\.SEQ"
)
SOURCES = re.compile(r"\bhttps?://([^/\s]+)")
# Debian's programs that run as another account.
SET_UID = {
    *("chage", "chfn", "chsh", "expiry", "gpasswd", "mount", "newgrp", "passwd", "su", "sudo", "umount"),
    *("dbus-daemon-launch-helper", "ssh-keysign", "polkit-agent-helper-1", "newuidmap", "newgidmap", "fusermount3"),
}
# Units that start on request of a person; what they run ends with them.
SESSIONS = re.compile(r"/(session-[^/]+\.scope|run-[^/]+\.(service|scope)|user@\d+\.service)(/|$)")
OUR_TABLES = {("inet", "minipc"): "firewall.nft", ("inet", "minipc_loopback"): "loopback.nft"}
# Programs that make tables of their own, by runtime.
THEIR_TABLES = {
    "k3s": re.compile(r"(ip|ip6) (nat|filter|mangle|raw)|(inet|ip|ip6) (kube-proxy|flannel\S*|cni\S*)"),
    "podman": re.compile(r"(ip|ip6) (nat|filter|mangle|raw)|inet netavark"),
}
SQL = """
SELECT 'database role ' || rolname || ' is a superuser' FROM pg_roles WHERE rolsuper AND rolname <> 'postgres'
UNION ALL SELECT 'setting ' || name || ' of PostgreSQL was changed by ALTER SYSTEM' FROM pg_file_settings
    WHERE sourcefile LIKE '%postgresql.auto.conf'
UNION ALL SELECT 'setting of PostgreSQL for ' || coalesce(rolname, 'every role') || ': '
    || array_to_string(setconfig, ', ')
    FROM pg_db_role_setting LEFT JOIN pg_roles ON pg_roles.oid = setrole WHERE setrole = 0 OR rolsuper
"""
LIMIT_S = 300
# Sentences of one kind.
MOST = 50

Expected = Mapping[str, Any]


def report(expected: Expected, root: str = "/") -> None:
    """Print what is unexpected as a JSON list of sentences. A question that cannot be answered is one, too.

    Args:
        expected: `paths` that minipc placed, `logins` (accounts with a shell), `apt` (hosts of package sources),
            `runtime` of the services, `psql` (its command; empty: no database here).
    """
    base = Path(root)
    found: list[str] = []
    for look in (accounts, authorised_keys, files, sources, set_uid, packages, listeners, firewall, kernel, database):
        try:
            seen = list(look(expected, base))
            found += seen[:MOST]
            if len(seen) > MOST:
                found.append(f"{look.__name__.replace('_', ' ')}: {len(seen) - MOST} more")
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            found.append(f"could not look for {look.__name__.replace('_', ' ')}: {type(error).__name__}: {error}")
    print(json.dumps(sorted(set(found))))


def accounts(expected: Expected, root: Path) -> Iterator[str]:
    """Return accounts with root's rights, with a shell, without a password, and members of groups with rights."""
    for line in (root / "etc/passwd").read_text().splitlines():
        name, _, uid, _, _, _, shell = line.split(":")
        if uid == "0" and name != "root":
            yield f"account {name} has uid 0"
        if not re.search(r"(nologin|false|sync|git-shell)$", shell) and name not in expected["logins"]:
            yield f"account {name} has the login shell {shell}"
    for line in (root / "etc/shadow").read_text().splitlines():
        if line.split(":")[1] == "":
            yield f"account {line.split(':')[0]} needs no password"
    for line in (root / "etc/group").read_text().splitlines():
        name, _, _, members = line.split(":")
        if name in ("sudo", "root", "docker", "shadow", "disk") and members:
            yield f"group {name} has the members {members}"


def authorised_keys(expected: Expected, root: Path) -> Iterator[str]:
    """Return files that let a key log in and that minipc did not place."""
    for line in (root / "etc/passwd").read_text().splitlines():
        home = root / line.split(":")[5].lstrip("/")
        for path in home.glob(".ssh/*authorized_keys*"):
            if _name(path, root) not in expected["paths"]:
                yield f"authorised key in {_name(path, root)}"


def files(expected: Expected, root: Path) -> Iterator[str]:
    """Return files in folders that run programs, if neither a package nor minipc owns them; and writable ones."""
    owned = _owned(root)
    for folder in FOLDERS:
        for path in _below(root / folder):
            name = _name(path, root)
            if path.is_symlink() and not _leads_to(path, root, owned | {*expected["paths"], "/dev/null"}):
                yield f"link {name} leads to {os.readlink(path)}, which belongs to no package and is not from minipc"
            if path.is_symlink() or name in expected["paths"] or name in owned:
                continue
            if not GENERATED.fullmatch(name.lstrip("/")):
                yield f"file {name} belongs to no package and is not from minipc"
    for each in FILES:
        if (root / each).exists():
            yield f"file /{each} exists"
    for folder in ("etc", "usr"):
        for path in _below(root / folder):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IWOTH:
                yield f"file {_name(path, root)} is writable for everybody (mode {stat.S_IMODE(found.st_mode):o})"


def sources(expected: Expected, root: Path) -> Iterator[str]:
    """Return package sources that are not Debian's, or that are trusted without a signature."""
    folder = root / "etc/apt"
    for path in [folder / "sources.list", *_below(folder / "sources.list.d")]:
        if not path.exists():
            continue
        text = re.sub(r"^\s*#.*", "", path.read_text(errors="replace"), flags=re.M)
        if re.search(r"\btrusted\s*[=:]\s*yes", text, re.I):
            yield f"package source {_name(path, root)} is trusted without a signature"
        for host in set(SOURCES.findall(text)):
            if host not in expected["apt"] and not re.search(r"(^|\.)debian\.org$", host):
                yield f"package source {_name(path, root)} is {host}"


def set_uid(expected: Expected, root: Path) -> Iterator[str]:
    """Return programs that run as another account (set-uid) and are not among Debian's usual ones."""
    for top in ("usr", "opt", "srv", "var", "home", "root", "tmp", "etc"):
        # What is in images of containers runs in containers.
        for path in _below(root / top, skip=("var/lib/rancher", "var/lib/containers")):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & stat.S_ISUID and path.name not in SET_UID:
                yield f"program {_name(path, root)} runs as another account (set-uid)"


def packages(expected: Expected, root: Path) -> Iterator[str]:
    """Return files of packages whose content was changed."""
    # Exit code 1 or 2: there are differences.
    said = _run(["dpkg", "--verify"], accepted=(0, 1, 2))
    for line in said.splitlines():
        flags, path = line[:9], line.rpartition(" ")[2]
        if "5" in flags and path not in expected["paths"]:
            yield f"file {path} of a package was changed"


def listeners(expected: Expected, root: Path) -> Iterator[str]:
    """Return programs that listen and were not started by a unit that a package or minipc brought."""
    known = _owned(root) | set(expected["paths"])
    for line in _run(["ss", "-Hltunp"]).splitlines():
        fields = line.split()
        for program, pid in re.findall(r'"([^"]+)",pid=(\d+)', line):
            try:
                group = (root / "proc" / pid / "cgroup").read_text().strip().rpartition(":")[2]
            except FileNotFoundError:
                continue
            unit = re.search(r"/([^/]+\.service)", group)
            template = re.sub(r"@[^/]*\.service$", "@.service", unit[1]) if unit else ""
            names = {unit[1], template} if unit else set()
            places = ("/etc/systemd/system", "/usr/lib/systemd/system", "/run/systemd/generator")
            from_a_unit = any(f"{place}/{name}" in known for place in places for name in names)
            generated = unit and (root / "run/systemd/generator" / unit[1]).exists()
            in_a_pod = "kubepods" in group or "libpod" in group
            if SESSIONS.search(group) or not (from_a_unit or generated or in_a_pod or pid == "1"):
                yield f"program {program} listens on {fields[0]} {fields[4]}, started in {group}"


def firewall(expected: Expected, root: Path) -> Iterator[str]:
    """Return tables that are not ours, and whether ours differ from their files."""
    theirs = THEIR_TABLES[expected["runtime"]]
    for line in _run(["nft", "list", "tables"]).splitlines():
        _, family, table = line.split()
        file = OUR_TABLES.get((family, table))
        if file:
            listing = f"nft -s -t list table {family} {table}"
            wanted = _run(["unshare", "-n", "sh", "-c", f"nft -f /etc/minipc/{file} && {listing}"])
            if wanted != _run(listing.split()):
                yield f"firewall table {family} {table} differs from /etc/minipc/{file}"
        elif not theirs.fullmatch(f"{family} {table}"):
            yield f"firewall table {family} {table} is not from minipc"


def kernel(expected: Expected, root: Path) -> Iterator[str]:
    """Return kernel settings that differ from the file of minipc."""
    in_container = (root / "run/systemd/container").exists()
    for line in (root / "etc/sysctl.d/60-minipc.conf").read_text().splitlines():
        name, equals, wanted = (part.strip() for part in line.partition("="))
        # A container shares its kernel's other settings.
        if not equals or name.startswith(("#", "-")) or (in_container and not name.startswith("net.ipv")):
            continue
        path = root / "proc/sys" / name.replace(".", "/")
        if "*" not in name and path.exists() and path.read_text().split() != wanted.split():
            yield f"kernel setting {name} is {path.read_text().strip()}, configured is {wanted}"


def database(expected: Expected, root: Path) -> Iterator[str]:
    """Return superusers and settings that are not from minipc."""
    if expected["psql"]:
        yield from _run(["sh", "-c", expected["psql"]], stdin=SQL).splitlines()


def _owned(root: Path) -> set[str]:
    """Return the files of all installed packages. Debian's /lib is a link to /usr/lib."""
    found = {"/etc/modules"}
    registry = root / "var/lib/ucf/registry"
    if registry.exists():
        # Settings that a package writes while it is installed: PACKAGE PATH.
        found |= {line.split()[1] for line in registry.read_text().splitlines()}
    for listing in (root / "var/lib/dpkg/info").glob("*.list"):
        found |= {re.sub(r"^/(bin|sbin|lib)/", r"/usr/\1/", line) for line in listing.read_text().splitlines()}
    return found


def _leads_to(link: Path, root: Path, known: set[str]) -> bool:
    """Return whether a link leads to one of these files; a broken one leads nowhere, which is harmless."""
    target = os.readlink(link)
    path = os.path.normpath(target if target.startswith("/") else f"{_name(link.parent, root)}/{target}")
    path = re.sub(r"^/(bin|sbin|lib)/", r"/usr/\1/", path)
    # A link to an instance, such as a@1.service, leads to its template.
    names = {path, re.sub(r"@[^/]*(\.\w+)$", r"@\1", path)}
    # What a generator made follows from another file.
    return bool(names & known) or path.startswith("/run/systemd/generator") or not (root / path.lstrip("/")).exists()


def _below(folder: Path, skip: Iterable[str] = ()) -> Iterator[Path]:
    """Return all files below a folder on its file system. A file that vanishes meanwhile is left out."""
    for parent, folders, names in os.walk(folder):
        keep = [each for each in folders if not any(f"{parent}/{each}".endswith(f"/{other}") for other in skip)]
        folders[:] = [each for each in keep if not os.path.ismount(f"{parent}/{each}")]
        yield from (path for name in names if os.path.lexists(path := Path(parent, name)))


def _name(path: Path, root: Path) -> str:
    return f"/{path.relative_to(root)}"


def _run(argv: list[str], stdin: str = "", accepted: Iterable[int] = (0,)) -> str:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=LIMIT_S, env=environment, cwd="/")
    if done.returncode not in accepted:
        raise ValueError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout
