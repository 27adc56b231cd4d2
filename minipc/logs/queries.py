"""The saved questions: `playbooks/log_queries.yaml`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minipc import yaml_text
from minipc.errors import ConfigError
from minipc.paths import ROOT

FILE = ROOT / "playbooks/log_queries.yaml"
REQUEST_ID = "{request_id}"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Sample(_Strict):
    """A line that the query must find."""

    service: str
    level: str
    line: str
    request_id: str | None = None


class SavedQuery(_Strict):
    """A question, and how Loki is asked it."""

    name: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)*$")]
    question: Annotated[str, Field(min_length=1)]
    logql: Annotated[str, Field(min_length=1)]
    sample: Sample

    def filled(self, request_id: str | None) -> str:
        """The LogQL.

        Raises:
            ConfigError: it asks for a request, and none is given.
        """
        if REQUEST_ID not in self.logql:
            return self.logql
        if not request_id:
            raise ConfigError(f"the query {self.name} is about one request", "add --request-id ID")
        return self.logql.replace(REQUEST_ID, request_id)


class _Document(_Strict):
    queries: list[SavedQuery]


def saved_queries(path: Path = FILE) -> dict[str, SavedQuery]:
    """All of them by name.

    Raises:
        ConfigError: the file is missing or broken.
    """
    try:
        document = _Document.model_validate(yaml_text.parse(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path.name} can't be read: {error}", "restore it from git") from None
    return {query.name: query for query in document.queries}


def saved_query(name: str) -> SavedQuery:
    """One of them.

    Raises:
        ConfigError: there is none of that name; suggests the nearest one.
    """
    known = saved_queries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "`minipc logs --list` shows them"
        raise ConfigError(f"no saved query `{name}`; there are: {', '.join(known)}", hint)
    return known[name]
