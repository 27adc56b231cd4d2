"""Backups at once, by the units that take them each night.

minipc backup now      minipc backup prune
"""

from __future__ import annotations

import json
from typing import Any

from minipc import ssh
from minipc.display import console_for
from minipc.errors import EXIT_FAIL, EXIT_PASS, ConfigError, CouldNotVerifyError, MinipcError
from minipc.inventory import Environment, Target, offsite_target, the_target
from minipc.secrets import load
from minipc.secrets.catalogue import RESTIC_PASSWORD

OUTCOMES = "/var/lib/minipc/backups/outcomes.json"
LIMIT_S = 6 * 3600


def now(environment: Environment, alias: str | None = None) -> int:
    """Takes them, prints what became of each repository, and returns the exit code.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or it has no backups component.
    """
    target = the_target(environment, alias)
    outcomes = take(target)
    console = console_for()
    for repo, outcome in sorted(outcomes.items()):
        if outcome["success"]:
            console.print(f"{repo}: {outcome['label']}, {outcome['size']} bytes stored, {outcome['seconds']} s")
        else:
            console.print(f"{repo}: FAILED: {outcome['error']}", markup=False)
    if target.settings.backups.offsite is None:
        console.print("NOT EXERCISED: off-site backups: there is no off-site machine (backups_offsite is None)")
    return EXIT_PASS if all(outcome["success"] for outcome in outcomes.values()) else EXIT_FAIL


def prune(environment: Environment, alias: str | None = None) -> None:
    """Removes snapshots that are older than `backups_files_days`, and what only they held.

    An operator's task, not a timer's: the server is append-only to the mini PC, and the passphrase is on the off-site
    machine only while this runs, in a pipe.

    Raises:
        ConfigError: there is no off-site machine.
        CouldNotVerifyError: it can't be reached.
        MinipcError: restic refused; its reason.
    """
    mini = the_target(environment, alias)
    offsite = offsite_target(environment, mini)
    if offsite is None:
        raise ConfigError(f"{mini.alias} has no off-site machine", "set backups_offsite")
    secret = load(environment, [RESTIC_PASSWORD])[RESTIC_PASSWORD]
    days = mini.settings.backups.files_days
    restic = "restic --no-cache --repo /srv/minipc-offsite/restic/minipc"
    account = "setpriv --reuid=restic-rest-server --regid=restic-rest-server --init-groups"
    command = (
        f"cd / && umask 077 && HOME=/ {account} {restic} forget --prune --group-by host --keep-within {days}d 2>&1"
    )
    config = ssh.write_config([(offsite.alias, offsite.data)])
    done = ssh.run(config, offsite.alias, command, stdin=secret.reveal(), timeout_s=LIMIT_S)
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        raise MinipcError(f"{offsite.alias}: nothing was removed: {said}", "is another restic at work there?")
    console_for().print(said, markup=False)


def take(target: Target, kind: str = "diff") -> dict[str, dict[str, Any]]:
    """One backup of the database (`full` or `diff`) into each repository, and one of configuration and state.

    Returns:
        By repository ("repo1", "repo2", "restic"): success, error, label, size (bytes), seconds, last_success, ended.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or has nothing to take backups with.
    """
    config = ssh.write_config([(target.alias, target.data)])
    units = [f"minipc-backup@{kind}.service"]
    if target.settings.backups.offsite:
        units.append("minipc-backup@files.service")
    command = "; ".join([*(f"systemctl start {unit}" for unit in units), f"cat {OUTCOMES}"])
    done = ssh.run(config, target.alias, command, timeout_s=LIMIT_S)
    if done.returncode:
        raise CouldNotVerifyError(
            f"{target.alias} took no backup: {done.stderr.decode(errors='replace').strip()}",
            "converge it first: `minipc apply backups`",
        )
    return dict(json.loads(done.stdout))
