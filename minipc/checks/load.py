"""Read the questions: `playbooks/checks.yaml`, and each service's own file. Explain their errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from minipc.checks.schema import Check, Checks, OwnChecks
from minipc.checks.scope import scoped
from minipc.checks.subjects import subjects
from minipc.config.service import Service
from minipc.core import yaml_text
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT
from minipc.core.strict import Strict

Kind = TypeVar("Kind", bound=Strict)
FILE = ROOT / "playbooks/checks.yaml"


def platform(path: Path = FILE) -> Checks:
    """Return all questions of `playbooks/checks.yaml`, whatever services there are. Raise ConfigError as `load`."""
    return _read(path, Checks)


def load(services: Sequence[Service], path: Path = FILE) -> Checks:
    """Return the questions about a machine with these services; the services' own are the last.

    A question about parts that no service has is left out.

    Raises:
        ConfigError: a file is not valid; the message names each question and field, and what is allowed.
    """
    known = platform(path)
    asked = [check for check in known.checks if not check.per or subjects(check.per, services)]
    own = [check for service in services for check in _own(service, known)]
    left_out = {check.id for check in known.checks} - {check.id for check in asked}
    checks = [_without(check, left_out) for check in (*asked, *own)]
    return Checks(sla=known.sla, checks=checks)


def _own(service: Service, others: Checks) -> list[Check]:
    """Return the questions in a service's own file, confined to that service."""
    if not service.alerts.checks:
        return []
    path = service.beside(service.alerts.checks)
    read = _read(path, OwnChecks).checks
    names = {check.id: f"{service.name}.{check.id}" for check in read}
    known = {*names, *(check.id for check in others.checks)}
    found = []
    for check in read:
        unknown = [name for name in check.explained_by if name not in known]
        if unknown:
            raise ConfigError(f"{path}: {check.id}.explained_by: there is no check {unknown[0]!r}", f"correct {path}")
        try:
            expression = scoped(check.expression, service.name) if check.expression else None
        except ValueError as error:
            raise ConfigError(f"{path}: {check.id}.expression: {error}", f"correct {path}") from None
        changed = {
            "id": names[check.id],
            "owner": service.name,
            "question": f"{service.name}: {check.question}",
            "expression": expression,
            "explained_by": [names.get(name, name) for name in check.explained_by],
        }
        found.append(check.model_copy(update=changed))
    return found


def _without(check: Check, names: set[str]) -> Check:
    kept = [name for name in check.explained_by if name not in names]
    return check if kept == check.explained_by else check.model_copy(update={"explained_by": kept})


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        content = yaml_text.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "restore it from git") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "fix the file") from None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = "".join(f"\n  - {_explain(detail, content)}" for detail in error.errors())
    raise ConfigError(f"{path.name}: {lines.count(chr(10))} problem(s){lines}", f"correct {path}") from None


def _explain(detail: ErrorDetails, content: Any) -> str:
    where = list(detail["loc"])
    if where[:1] == ["checks"] and len(where) > 1:
        number = int(where[1])
        name = content["checks"][number].get("id", f"number {number + 1}")
        where = [str(name), *where[2:]]
    return f"{'.'.join(map(str, where)) or 'the file'}: {detail['msg'].removeprefix('Value error, ')}"
