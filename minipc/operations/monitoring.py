"""What components register with Prometheus: `templates/NAME/scrape.yml.j2` and `templates/NAME/rules.yml.j2`.

A new component needs no change elsewhere: both are found by their name, rendered with all settings, and checked by
promtool before they get their final name (docs/reference/prometheus.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from minipc import yaml_text
from minipc.checks import load
from minipc.checks.pace import paced
from minipc.checks.rules import dump, of_component, of_questions
from minipc.components import COMPONENTS
from minipc.errors import ConfigError
from minipc.halt import stop
from minipc.operations.files import Content, File, render
from minipc.paths import ROOT

CHECK_RULES = "promtool check rules {path}"
# A scrape file is checked as part of the smallest configuration that includes it.
CHECK_SCRAPE = (
    "config=$(mktemp) && trap 'rm -f $config' EXIT && "
    'echo \'{"scrape_config_files": ["{path}"]}\' > $config && promtool check config $config'
)


def registered(directory: str, values: Mapping[str, Any], pace: float, runbook: str, owner: str = "root") -> list[File]:
    """The scrape and rule files of all components and of the questions, to be placed below `directory`.

    Args:
        values: what the templates may use.
        pace: see `minipc.checks.pace`.
        runbook: address of the triage chapter.
    """
    try:
        files = [
            Content(dump(of_questions(load(), runbook), pace), f"{directory}/rules.d/checks.yml", check=CHECK_RULES)
        ]
        for component in COMPONENTS:
            files += _of(component.name, directory, values, pace, runbook)
    except ConfigError as error:
        stop(error)
    return files


def _of(component: str, directory: str, values: Mapping[str, Any], pace: float, runbook: str) -> list[File]:
    rendering: dict[str, tuple[Callable[[str], bytes], str]] = {
        "scrape": (lambda text: paced(text, pace).encode(), CHECK_SCRAPE),
        "rules": (lambda text: dump(of_component(component, text, runbook), pace), CHECK_RULES),
    }
    found = []
    for kind, (finish, check) in rendering.items():
        if (ROOT / "templates" / component / f"{kind}.yml.j2").exists():
            text = rendered(component, kind, values)
            folder = "scrape.d" if kind == "scrape" else "rules.d"
            found.append(Content(finish(text), f"{directory}/{folder}/{component}.yml", check=check))
    return found


def rendered(component: str, kind: str, values: Mapping[str, Any]) -> str:
    """A component's `scrape` or `rules` file. Raises ConfigError."""
    file = render(component, File(f"{kind}.yml.j2", f"{kind}.yml"), values)
    assert isinstance(file, File)  # noqa: S101 - for the type checker: a file stays a file
    text = (file.content or b"").decode()
    try:
        yaml_text.parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"templates/{component}/{kind}.yml.j2 is no valid YAML: {error}", "mend it") from None
    return text
