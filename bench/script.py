"""Write the same resources as a plain shell script, as a person would who installs this machine once.

Two archives of files, one apt call, accounts, units started in order. No checks, no second run, no diff.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from bench.declared import PACKAGES, Operation, packages
from bench.playbook import FULL_BACKUP, pack
from minipc.pyinfra_ext.operations import Absent
from minipc.pyinfra_ext.operations.backups import BIN
from minipc.pyinfra_ext.operations.files import Entry
from minipc.pyinfra_ext.operations.postgres import access_statements

MARK = "@@ "
"""Starts a line that names the phase which begins."""

# Handled separately, all together.
_GATHERED = {
    PACKAGES,
    "packages.announced_packages_installed",
    "apt.update",
    "files.entries_present",
    "postgres.cluster_present",
    "server.group",
    "server.user",
}
# Not needed the first time: nobody reads yet what runs here, and a new database has nothing to recover.
_NOT_NEEDED = {"postgres.recovery_ended", "release.release_recorded"}


def early_entries(operations: Sequence[Operation]) -> list[Entry]:
    """Return the entries that a component places before its first package is installed."""
    early: list[Entry] = []
    to_install = {each.component for each in operations if each.kind == PACKAGES}
    for each in operations:
        if each.kind == PACKAGES:
            to_install.discard(each.component)
        elif each.kind == "files.entries_present" and each.component in to_install:
            early += each.arguments["entries"]
    return early


def late_entries(operations: Sequence[Operation]) -> list[Entry]:
    """Return all other entries; packages create the owners of their files."""
    early = {entry.path for entry in early_entries(operations)}
    entries: Iterable[Entry] = (
        entry for each in operations if each.kind == "files.entries_present" for entry in each.arguments["entries"]
    )
    return [entry for entry in entries if entry.path not in early]


def archives(operations: Sequence[Operation]) -> dict[str, bytes]:
    """Return the two archives that the script unpacks."""
    return {"early.tar": pack(early_entries(operations)), "late.tar": pack(late_entries(operations))}


def script(operations: Sequence[Operation]) -> str:
    """Return the script. It runs as root in the folder with the archives."""
    lines = ["#!/bin/sh", "set -eu", f"phase() {{ echo '{MARK}'\"$1\"; }}"]
    lines += ["phase packages", "tar -xpf early.tar -C /"]
    lines += ["export DEBIAN_FRONTEND=noninteractive MINIPC_HOLD_STARTS=1"]
    options = "-qq -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
    lines += ["apt-get update -qq"] * any(each.kind == "apt.update" for each in operations)
    lines += [f"apt-get install {options} {' '.join(packages(operations))}"]
    lines += ["phase files", *_accounts(operations), *_clusters(operations), "tar -xpf late.tar -C /"]
    lines += [f"rm -f {shlex.quote(entry.path)}" for entry in late_entries(operations) if isinstance(entry, Absent)]
    units = [unit for each in operations if each.kind == "systemd.units_active" for unit in each.arguments["units"]]
    lines += ["phase services", "systemctl daemon-reload", f"systemctl enable --quiet {' '.join(units)} 2>/dev/null"]
    for each in operations:
        lines += _in_turn(each)
    return "\n".join(lines) + "\n"


def left_out(operations: Sequence[Operation]) -> list[str]:
    """Operations that have no counterpart in the script; it has less to do."""
    return [each.label for each in operations if _unknown(each)]


def _unknown(operation: Operation) -> bool:
    return operation.kind not in _GATHERED | _NOT_NEEDED and not _in_turn(operation)


def _accounts(operations: Sequence[Operation]) -> list[str]:
    lines = []
    for each in operations:
        given = each.arguments
        if each.kind == "server.group":
            lines.append(f"groupadd {given['group']}")
        elif each.kind == "server.user":
            options = [f"--{key} {given[key]}" for key in ("home", "shell") if given.get(key)]
            options += [f"--gid {given['group']}"] if given.get("group") else []
            options += ["--create-home"] if given.get("create_home") else ["--no-create-home"]
            options += ["--system"] if given.get("system") else []
            lines.append(f"useradd {' '.join(options)} {given['user']}")
    return lines


def _clusters(operations: Sequence[Operation]) -> list[str]:
    """Create the clusters before the files, because `pg_createcluster` refuses if there is a configuration."""
    given = [each.arguments for each in operations if each.kind == "postgres.cluster_present"]
    return [f"pg_createcluster {each['version']} {each['cluster']}" for each in given]


def _in_turn(operation: Operation) -> list[str]:
    """Return the lines of an operation in its order; none if there is no counterpart."""
    given = operation.arguments
    match operation.kind:
        case "server.hostname":
            return [f"hostnamectl hostname {given['hostname']}"]
        case "server.timezone":
            return [f"ln -sfn /usr/share/zoneinfo/{given['timezone']} /etc/localtime"]
        case "postgres.access_present":
            command = f"runuser -u postgres -- psql -Xq -v ON_ERROR_STOP=1 -p {given['port']} -d postgres"
            wanted = {key: value for key, value in given.items() if key != "port"}
            return [f"{command} <<'SQL'", *access_statements(**wanted, found={}, settled={}), "SQL"]
        case "backups.stanza_present":
            return [f"{BIN}/stanza"]
        case "backups.first_backup_taken":
            return [f"systemctl start {FULL_BACKUP}"]
        case "systemd.units_active":
            return [f"systemctl {'reload' if unit == 'ssh.service' else 'restart'} {unit}" for unit in given["units"]]
        case _:
            return []
