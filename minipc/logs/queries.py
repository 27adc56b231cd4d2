"""The saved queries: `playbooks/log_queries.yaml`, and the services' own files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from minipc.config.service import Service
from minipc.core import yaml_text
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT
from minipc.core.strict import Strict

FILE = ROOT / "playbooks/log_queries.yaml"
REQUEST_ID = "{request_id}"


class Sample(Strict):
    """A log line that the query must find."""

    service: str
    level: str
    line: str
    process: str | None = None
    request_id: str | None = None


class SavedQuery(Strict):
    """A question and its query in LogQL."""

    name: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)*$")]
    question: Annotated[str, Field(min_length=1)]
    logql: Annotated[str, Field(min_length=1)]
    sample: Sample

    def filled(self, request_id: str | None) -> str:
        """Return the query, with the request id filled in.

        Raises:
            ConfigError: the query needs a request id, and none is given.
        """
        if REQUEST_ID not in self.logql:
            return self.logql
        if not request_id:
            raise ConfigError(f"the query {self.name} needs a request id", "add --request-id ID")
        return self.logql.replace(REQUEST_ID, request_id)


class _Document(Strict):
    queries: list[SavedQuery]


def saved_queries(services: Iterable[Service] = (), path: Path = FILE) -> dict[str, SavedQuery]:
    """Return all saved queries by name: the project's, and those in the services' own files (`alerts.log_queries`).

    Raises:
        ConfigError: a file is missing or not valid, or two queries have the same name.
    """
    own = [service.beside(service.alerts.log_queries) for service in services if service.alerts.log_queries]
    found: dict[str, SavedQuery] = {}
    for file in (path, *own):
        for query in _read(file):
            if query.name in found:
                raise ConfigError(f"{file}: there is another query {query.name!r}", "rename one of the two")
            found[query.name] = query
    return found


def _read(path: Path) -> list[SavedQuery]:
    try:
        return _Document.model_validate(yaml_text.parse(path.read_text(encoding="utf-8"))).queries
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}", "restore it from git") from None


def saved_query(name: str, services: Iterable[Service] = ()) -> SavedQuery:
    """Return one saved query.

    Raises:
        ConfigError: there is no query with this name; the message suggests the nearest one.
    """
    known = saved_queries(services)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "`minipc logs --list` shows them"
        raise ConfigError(f"there is no saved query `{name}`; known are: {', '.join(known)}", hint)
    return known[name]
