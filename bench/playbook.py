"""Write the same resources as an Ansible playbook, in the way that is fastest for Ansible.

Only ansible-core's own modules. Where it has none (time zone, PostgreSQL's roles) one cheap task stands for it; a code
tree is one `unarchive` instead of one task a file; nothing gathers facts; handlers are left out: nothing changes.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from bench.declared import PACKAGES, Operation, content, files_of
from minipc.pyinfra_ext.facts.release import RELEASE_FILE
from minipc.pyinfra_ext.operations import Absent, Directory, File
from minipc.pyinfra_ext.operations.backups import BIN
from minipc.pyinfra_ext.operations.files import Entry
from minipc_machine.backup_state import STATE

FULL_BACKUP = "minipc-backup@full.service"

TREE_FILES = 5
"""From this many files of the same owner and mode below one directory on, a person would unpack an archive."""

Task = dict[str, Any]


@dataclass
class Playbook:
    """Tasks, and the files they copy.

    Attributes:
        resting: units that rightly don't run on this machine; `state: started` would start them each time.
        files: name under the playbook's `files/` -> content.
        left_out: operations that have no counterpart here; Ansible has less to do.
        installed: packages that have a task already.
    """

    resting: Collection[str] = ()
    tasks: list[Task] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    installed: dict[str, None] = field(default_factory=dict)

    @property
    def resources(self) -> int:
        """Return the number of tasks; a loop counts as its items."""
        return sum(len(task.get("loop", [None])) for task in self.tasks)

    def play(self) -> list[dict[str, Any]]:
        """Return the playbook, to be written as YAML."""
        return [{"hosts": "all", "gather_facts": False, "tasks": self.tasks}]

    def add(self, name: str, module: str, arguments: Any, **more: Any) -> None:
        """Append a task."""
        self.tasks.append({"name": name, module: arguments, **more})

    def keep(self, data: bytes) -> str:
        """Store a file's content and return its name."""
        name = hashlib.sha256(data).hexdigest()[:16]
        self.files[name] = data
        return name


def playbook(operations: Sequence[Operation], resting: Collection[str] = ()) -> Playbook:
    """Translate the declared operations into a playbook."""
    book = Playbook(resting)
    for each in operations:
        translate = TRANSLATIONS.get(each.kind)
        if translate:
            translate(book, each.label, each.arguments)
        else:
            book.left_out.append(each.label)
    return book


def _packages(book: Playbook, name: str, given: dict[str, Any]) -> None:
    """One task for each component, without packages that an earlier one has."""
    wanted = [package for package in given["packages"] if package not in book.installed]
    if wanted:
        book.installed |= dict.fromkeys(wanted)
        book.add(name, "ansible.builtin.apt", {"name": wanted})


def _package_lists(book: Playbook, name: str, given: dict[str, Any]) -> None:
    book.add(name, "ansible.builtin.apt", {"update_cache": True, "cache_valid_time": given["cache_time"]})


def _group(book: Playbook, name: str, given: dict[str, Any]) -> None:
    book.add(name, "ansible.builtin.group", {"name": given["group"]})


def _user(book: Playbook, name: str, given: dict[str, Any]) -> None:
    same = {key: given[key] for key in ("group", "home", "shell", "system") if key in given}
    create_home = bool(given.get("create_home", False))
    book.add(name, "ansible.builtin.user", {"name": given["user"], "create_home": create_home, **same})


def _host_name(book: Playbook, name: str, given: dict[str, Any]) -> None:
    book.add(name, "ansible.builtin.hostname", {"name": given["hostname"], "use": "systemd"})


def _time_zone(book: Playbook, name: str, given: dict[str, Any]) -> None:
    zone = f"/usr/share/zoneinfo/{given['timezone']}"
    book.add(name, "ansible.builtin.file", {"path": "/etc/localtime", "src": zone, "state": "link"})


def _units(book: Playbook, name: str, given: dict[str, Any]) -> None:
    wanted = {"name": "{{ item }}", "enabled": given["enabled"]}
    resting = [unit for unit in given["units"] if unit in book.resting]
    running = [unit for unit in given["units"] if unit not in book.resting]
    if running:
        book.add(name, "ansible.builtin.systemd_service", wanted | {"state": "started"}, loop=running)
    if resting:
        book.add(f"{name}: at boot", "ansible.builtin.systemd_service", wanted, loop=resting)


def _entries(book: Playbook, name: str, given: dict[str, Any]) -> None:
    """Return tasks for directories, files and absent files, each kind in a loop; a tree of code is one archive."""
    entries: Sequence[Entry] = given["entries"]
    tree, directory = code_tree(entries)
    directories = [_place(entry) for entry in entries if isinstance(entry, Directory)]
    files = [
        _place(entry) | {"src": book.keep(content(entry))}
        for entry in files_of(entries)
        if entry.path not in {file.path for file in tree}
    ]
    absent = [entry.path for entry in entries if isinstance(entry, Absent)]
    place = {"path": "{{ item.path }}", "owner": "{{ item.owner }}", "group": "{{ item.group }}"}
    place |= {"mode": "{{ item.mode }}"}
    if directories:
        book.add(f"{name}: directories", "ansible.builtin.file", place | {"state": "directory"}, loop=directories)
    if files:
        copy = place | {"src": "{{ item.src }}", "dest": "{{ item.path }}"}
        copy.pop("path")
        book.add(name, "ansible.builtin.copy", copy, loop=files, no_log=True)
    if tree:
        archive = book.keep(pack(tree, below=directory))
        book.add(f"{name}: code", "ansible.builtin.unarchive", {"src": archive, "dest": directory})
    if absent:
        remove = {"path": "{{ item }}", "state": "absent"}
        book.add(f"{name}: absent", "ansible.builtin.file", remove, loop=absent)


def _place(entry: File | Directory) -> dict[str, str]:
    return {
        "path": entry.path,
        "owner": entry.owner,
        "group": entry.group or entry.owner,
        "mode": entry.mode.zfill(4),
    }


def code_tree(entries: Sequence[Entry]) -> tuple[list[File], str]:
    """Return the first directory and the files below it with one owner and mode; none if there are only a few."""
    directory = next((entry.path for entry in entries if isinstance(entry, Directory)), "")
    below = [file for file in files_of(entries) if directory and PurePosixPath(file.path).is_relative_to(directory)]
    owners = {(file.owner, file.group, file.mode) for file in below}
    return (below, directory) if len(below) >= TREE_FILES and len(owners) == 1 else ([], "")


def pack(entries: Sequence[Entry], below: str = "/") -> bytes:
    """Return a tar of directories and files with their owners and modes; names are relative to `below`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            if isinstance(entry, Absent):
                continue
            member = tarfile.TarInfo(str(PurePosixPath(entry.path).relative_to(below)))
            member.mode = int(entry.mode, 8)
            member.uname, member.gname = entry.owner, entry.group or entry.owner
            data = content(entry) if isinstance(entry, File) else b""
            member.type = tarfile.REGTYPE if isinstance(entry, File) else tarfile.DIRTYPE
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _cluster(book: Playbook, name: str, given: dict[str, Any]) -> None:
    version, cluster = given["version"], given["cluster"]
    creates = f"/var/lib/postgresql/{version}/{cluster}/PG_VERSION"
    book.add(name, "ansible.builtin.command", {"cmd": f"pg_createcluster {version} {cluster}", "creates": creates})


def _recovered(book: Playbook, name: str, given: dict[str, Any]) -> None:
    argv = [*_psql(given["port"]), "SELECT pg_is_in_recovery()"]
    book.add(name, "ansible.builtin.command", {"argv": argv}, changed_when=False)


def _stanza(book: Playbook, name: str, given: dict[str, Any]) -> None:
    command = {"cmd": f"{BIN}/stanza", "creates": f"{STATE}/stanza.json"}
    book.add(name, "ansible.builtin.command", command)


def _first_backup(book: Playbook, name: str, given: dict[str, Any]) -> None:
    command = {"cmd": f"systemctl start {FULL_BACKUP}", "creates": f"{STATE}/outcomes.json"}
    book.add(name, "ansible.builtin.command", command)


def _psql(port: int) -> list[str]:
    return ["runuser", "-u", "postgres", "--", "psql", "-XAtq", "-p", str(port), "-c"]


def _access(book: Playbook, name: str, given: dict[str, Any]) -> None:
    """Return one query for each; a real playbook would also compare passwords, memberships and owners."""
    queries = [f"SELECT 1 FROM pg_roles WHERE rolname = '{role.name}'" for role in given["roles"]]
    queries += [f"SELECT 1 FROM pg_database WHERE datname = '{database.name}'" for database in given["databases"]]
    queries += [f"SELECT 1 FROM pg_extension WHERE extname = '{extension}'" for extension in given["extensions"]]
    argv = [*_psql(given["port"]), "{{ item }}"]
    book.add(name, "ansible.builtin.command", {"argv": argv}, loop=queries, changed_when=False)


def _release(book: Playbook, name: str, given: dict[str, Any]) -> None:
    book.add(name, "ansible.builtin.file", {"path": RELEASE_FILE, "state": "file"})


TRANSLATIONS: dict[str, Callable[[Playbook, str, dict[str, Any]], None]] = {
    PACKAGES: _packages,
    "packages.announced_packages_installed": lambda book, name, given: None,  # the others name the same packages
    "apt.update": _package_lists,
    "backups.first_backup_taken": _first_backup,
    "backups.stanza_present": _stanza,
    "files.entries_present": _entries,
    "postgres.access_present": _access,
    "postgres.cluster_present": _cluster,
    "postgres.recovery_ended": _recovered,
    "release.release_recorded": _release,
    "server.group": _group,
    "server.hostname": _host_name,
    "server.timezone": _time_zone,
    "server.user": _user,
    "systemd.units_active": _units,
}
