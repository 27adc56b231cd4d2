"""What the machine knows about its own backups, in one remote command that contacts no repository."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pyinfra.api import FactBase

STATE = "/var/lib/minipc/backups"
_CONTROL = "/usr/lib/postgresql/17/bin/pg_controldata /var/lib/postgresql/17/main"


@dataclass(frozen=True)
class Backups:
    """The state of the backups.

    Attributes:
        live: system identifier of the database; None where there is no cluster.
        stanza: system identifier that the stanza was last found good for; None when it never was.
        stanza_repos: the repositories in which it was.
        taken: repositories ("repo1", "repo2", "restic") that have had a successful backup.
        state: the paths for which a rebuild has asked the backup of configuration and state.
    """

    live: str | None = None
    stanza: str | None = None
    stanza_repos: tuple[int, ...] = ()
    taken: tuple[str, ...] = ()
    state: tuple[str, ...] = ()


class BackupsState(FactBase[Backups]):
    """`Backups` of the machine."""

    def command(self) -> str:
        return (
            f"echo live $({_CONTROL} 2>/dev/null | sed -n 's/^Database system identifier: *//p'); "
            f"for name in stanza outcomes state; do echo $name $(cat {STATE}/$name.json 2>/dev/null); done"
        )

    @staticmethod
    def default() -> Backups:
        return Backups()

    def process(self, output: list[str]) -> Backups:
        found = {key: value for key, _, value in (line.partition(" ") for line in output)}
        stanza: dict[str, Any] = json.loads(found.get("stanza") or "{}")
        outcomes: dict[str, Any] = json.loads(found.get("outcomes") or "{}")
        state: dict[str, Any] = json.loads(found.get("state") or "{}")
        return Backups(
            live=found.get("live") or None,
            stanza=stanza.get("system_id"),
            stanza_repos=tuple(stanza.get("repos", ())),
            taken=tuple(name for name, outcome in outcomes.items() if "last_success" in outcome),
            state=tuple(state),
        )
