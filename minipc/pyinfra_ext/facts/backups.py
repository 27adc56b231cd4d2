"""Facts about the machine's backups, in one remote command that contacts no repository."""

from __future__ import annotations

from dataclasses import dataclass

from pyinfra.api import FactBase

from minipc_machine import backup_state, schema
from minipc_machine.backup_state import STATE, Stanza

_CONTROL = "/usr/lib/postgresql/17/bin/pg_controldata /var/lib/postgresql/17/main"


@dataclass(frozen=True)
class Backups:
    """The state of the backups.

    Attributes:
        live: system identifier of the database; None if there is no cluster.
        stanza: system identifier that the stanza was last found good for; None when it never was.
        stanza_repos: the repositories in which it was.
        storage: the bucket or storage box of the second one then; empty: it was on an off-site host.
        taken: repositories ("repo1", "repo2", "restic") that have had a successful backup.
        state: the paths that a rebuild has already looked for in the backup of configuration and state.
        volumes: the volumes (SERVICE/NAME) that a rebuild has already looked for.
    """

    live: str | None = None
    stanza: str | None = None
    stanza_repos: tuple[int, ...] = ()
    storage: str = ""
    taken: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()


class BackupsState(FactBase[Backups]):
    """`Backups` of the machine."""

    def command(self) -> str:
        return (
            f"echo live $({_CONTROL} 2>/dev/null | sed -n 's/^Database system identifier: *//p'); "
            f"for name in stanza outcomes state volumes; do echo $name $(cat {STATE}/$name.json 2>/dev/null); done"
        )

    @staticmethod
    def default() -> Backups:
        return Backups()

    def process(self, output: list[str]) -> Backups:
        found = {key: value for key, _, value in (line.partition(" ") for line in output)}
        stanza = None
        if found.get("stanza"):
            stanza = schema.loads(Stanza, found["stanza"], "stanza.json", ignore_unknown=True)
        outcomes = backup_state.outcomes(found.get("outcomes") or "{}")
        return Backups(
            live=found.get("live") or None,
            stanza=stanza.system_id if stanza else None,
            stanza_repos=tuple(stanza.repos) if stanza else (),
            storage=stanza.storage if stanza else "",
            taken=tuple(name for name, outcome in outcomes.items() if outcome.last_success),
            state=tuple(backup_state.restored_paths(found.get("state") or "{}")),
            volumes=tuple(backup_state.restored_volumes(found.get("volumes") or "{}")),
        )
