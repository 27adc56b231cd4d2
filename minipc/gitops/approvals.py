"""What a person approved last: a commit for each application of a deploy repository, kept with the inventory.

A rebuild syncs exactly these commits, and a sync takes nothing that does not come after all of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from minipc.core.environment import Environment
from minipc.core.errors import ConfigError, RefusedError
from minipc.core.files import write_atomic
from minipc.remote.inventory import Target

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", strict=True)]
_FILE = TypeAdapter(dict[str, dict[str, Hash]])
NAME = "approved.json"


def approvals_file(environment: Environment) -> Path:
    """Return the file with the approved commits."""
    return environment.trust_folder / NAME


@dataclass(frozen=True)
class Approvals:
    """The approved commits of one deploy repository.

    Attributes:
        path: the file.
        repository: which one, as `of` names it.
    """

    path: Path
    repository: str

    def commits(self) -> dict[str, str]:
        """Return the approved commit of each application. Raises ConfigError if the file is damaged."""
        return self._all().get(self.repository, {})

    def of(self, application: str) -> str:
        """Return an application's approved commit. Raises RefusedError if there is none."""
        commits = self.commits()
        if application not in commits:
            raise RefusedError(
                f"no commit of the deploy repository is approved for {application} in {self.path}",
                "run `minipc release pin` to approve one; if the file was lost, restore it from git",
            )
        return commits[application]

    def approve(self, applications: Iterable[str], commit: str) -> None:
        """Remember a commit for each of these applications; the file is replaced atomically."""
        everything = self._all()
        everything[self.repository] = self.commits() | dict.fromkeys(applications, commit)
        self._write(everything)

    def keep(self, applications: Collection[str]) -> None:
        """Forget the commits of all other applications: their services are gone."""
        everything, commits = self._all(), self.commits()
        kept = {name: commit for name, commit in commits.items() if name in applications}
        if kept != commits:
            everything[self.repository] = kept
            self._write(everything)

    def _write(self, everything: dict[str, dict[str, str]]) -> None:
        text = json.dumps(_FILE.validate_python(everything), indent=2, sort_keys=True) + "\n"
        write_atomic(self.path, text.encode(), mode=0o644)

    def _all(self) -> dict[str, dict[str, str]]:
        try:
            return _FILE.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise ConfigError(f"{self.path}: {error.errors()[0]['msg']}", "restore it from git") from None


def of_machine(target: Target) -> Approvals:
    """Return the approvals for the deploy repository of a mini PC.

    It is known by the off-site machine that hosts it, whose name outlives its address, else by its own address.
    """
    settings = target.settings
    name = settings.argocd.repository or settings.backups.offsite or target.alias
    return Approvals(approvals_file(settings.where), name)
