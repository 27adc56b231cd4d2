"""Reads `playbooks/checks.yaml` and words what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from minipc import yaml_text
from minipc.checks.schema import Checks
from minipc.errors import ConfigError
from minipc.paths import ROOT

FILE = ROOT / "playbooks/checks.yaml"


def load(path: Path = FILE) -> Checks:
    """The questions.

    Raises:
        ConfigError: names each question and field that is wrong, and what is allowed.
    """
    try:
        content = yaml_text.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", "restore it from git") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}", "mend the file") from None
    try:
        return Checks.model_validate(content)
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
