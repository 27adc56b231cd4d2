"""Backups at once, by the units that take them each night.

minipc backup now      minipc backup prune
"""

from __future__ import annotations

from collections.abc import Sequence

from minipc.config.offsite import place_of, restic_command
from minipc.config.service import Service
from minipc.config.services import volumes_of
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, ConfigError, CouldNotVerifyError, MinipcError
from minipc.evidence.display import console_for
from minipc.remote import ssh
from minipc.remote.inventory import Target, offsite_target, the_target
from minipc.remote.queries import on
from minipc.remote.results import parse_result
from minipc.secrets import load
from minipc.secrets.catalogue import RESTIC_PASSWORD
from minipc_machine import backup_state
from minipc_machine.backup_state import Outcome

LIMIT_S = 6 * 3600


def now(environment: Environment, alias: str | None = None) -> int:
    """Take the backups, print the result of each repository, and return the exit code.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or it has no backups component.
    """
    target = the_target(environment, alias)
    outcomes = take(target)
    console = console_for()
    for repo, outcome in sorted(outcomes.items()):
        if outcome.success:
            console.print(f"{repo}: {outcome.label}, {outcome.size} bytes stored, {outcome.seconds} s")
        else:
            console.print(f"{repo}: FAILED: {outcome.error}", markup=False)
    if not target.settings.has_offsite:
        console.print("NOT EXERCISED: off-site backups: there is no off-site host (backups_offsite is None)")
    return EXIT_PASS if all(outcome.success for outcome in outcomes.values()) else EXIT_FAIL


def prune(environment: Environment, alias: str | None = None) -> None:
    """Remove snapshots that are older than `backups_files_days`, and the data that only they contain.

    An operator's task, not a timer's: the server is append-only to the mini PC, and the passphrase is on the off-site
    machine only while this runs, in a pipe. With a bucket or a storage box it runs on the mini PC.

    Raises:
        ConfigError: there is no off-site machine.
        CouldNotVerifyError: it can't be reached.
        MinipcError: restic refused; its reason.
    """
    mini = the_target(environment, alias)
    offsite = offsite_target(environment, mini)
    forget = f"forget --retry-lock 5m --prune --group-by host --keep-within {mini.settings.backups.files_days}d 2>&1"
    if place_of(mini.settings):
        # The mini PC has the key of the bucket or storage box, and the passphrase.
        where, stdin, command = mini, "", f"HOME=/root {restic_command(mini.settings)} {forget}"
    elif offsite:
        where, stdin = offsite, load(environment.name, [RESTIC_PASSWORD])[RESTIC_PASSWORD].reveal()
        account = "setpriv --reuid=restic-rest-server --regid=restic-rest-server --init-groups"
        restic = "restic --no-cache --repo /srv/minipc-offsite/restic/minipc"
        command = f"cd / && umask 077 && HOME=/ {account} {restic} {forget}"
    else:
        raise ConfigError(f"{mini.alias} has no off-site host", "set backups_offsite in inventory/")
    config = ssh.write_config([(where.alias, where.data)])
    done = ssh.run(config, where.alias, command, stdin=stdin, timeout_s=LIMIT_S)
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        raise MinipcError(
            f"{where.alias}: nothing was removed: {said}", "check whether another restic is running there"
        )
    console_for().print(said, markup=False)


def before_release(target: Target, service: Service) -> str:
    """Back up the volumes, which a new version may change; return a sentence, empty if the service has no volumes.

    The database needs no backup: it can be restored to any moment.

    Raises:
        MinipcError: the backup failed, so that the new version must not start.
        CouldNotVerifyError: the machine can't be reached.
    """
    if not service.volumes:
        return ""
    if not target.settings.has_offsite:
        return "volumes not backed up: NOT EXERCISED: there is no off-site machine (backups_offsite is None)"
    outcomes = _run(target, ["minipc-backup@volumes.service"])
    own = {each.tag for each in volumes_of([service])}
    failed = [f"{tag}: {outcomes[tag].error}" for tag in sorted(own & set(outcomes)) if not outcomes[tag].success]
    failed += [f"{tag}: no backup was taken" for tag in sorted(own - set(outcomes))]
    if failed:
        raise MinipcError(f"{'; '.join(failed)}; nothing was changed", "`minipc backup now` shows the outcome of each")
    return f"backed up: {', '.join(sorted(own))}"


def after_release(target: Target) -> str:
    """Start a backup of configuration and state, which contains the released images; return a sentence.

    Raises:
        CouldNotVerifyError: the machine can't be reached, or it has no backups component.
    """
    if not target.settings.has_offsite:
        return "images not backed up: NOT EXERCISED: there is no off-site machine (backups_offsite is None)"
    # A slow line must not make the release slow: its outcome is a metric, and an alert if it fails.
    on(target, "systemctl start --no-block minipc-backup@state.service")
    return "a backup of the image has started"


def take(target: Target, kind: str = "diff") -> dict[str, Outcome]:
    """Back up the database (`full` or `diff`) into each repository, and configuration and state.

    Returns:
        The outcomes by repository: "repo1", "repo2", "restic".

    Raises:
        CouldNotVerifyError: the machine can't be reached, or has nothing to take backups with.
    """
    units = [f"minipc-backup@{kind}.service"]
    if target.settings.has_offsite:
        units.append("minipc-backup@files.service")
    return _run(target, units)


def _run(target: Target, units: Sequence[str]) -> dict[str, Outcome]:
    """Start the units one after the other, and return all outcomes. Raises CouldNotVerifyError as `take` does."""
    config = ssh.write_config([(target.alias, target.data)])
    command = "; ".join([*(f"systemctl start {unit}" for unit in units), f"cat {backup_state.OUTCOMES}"])
    done = ssh.run(config, target.alias, command, timeout_s=LIMIT_S)
    if done.returncode:
        raise CouldNotVerifyError(
            f"{target.alias} took no backup: {done.stderr.decode(errors='replace').strip()}",
            "converge it first: `minipc apply backups`",
        )
    return parse_result(dict[str, Outcome], done.stdout, f"{target.alias}: {backup_state.OUTCOMES}")
