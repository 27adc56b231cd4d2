"""Files with which components register with Prometheus: `templates/NAME/scrape.yml.j2` and `rules.yml.j2`.

Both are found by their name, rendered with all settings, and checked by promtool before they get their final name
(docs/reference/prometheus.md). So a new component needs no change in other files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from minipc.checks import load
from minipc.checks.rules import dump, of_component, of_questions, of_services
from minipc.checks.time_scale import scaled
from minipc.config.components import COMPONENTS
from minipc.config.service import Service
from minipc.core import yaml_text
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT
from minipc.pyinfra_ext.abort import stop
from minipc.pyinfra_ext.operations.files import Absent, Content, Entry, File, render

CHECK_RULES = "promtool check rules {path}"
# A scrape file is checked as part of the smallest configuration that includes it.
CHECK_SCRAPE = (
    "config=$(mktemp) && trap 'rm -f $config' EXIT && "
    'echo \'{"scrape_config_files": ["{path}"]}\' > $config && promtool check config $config'
)


# Files of earlier versions.
REMOVED = ("rules.d/workload.yml", "scrape.d/workload.yml")


def registered(
    directory: str, values: Mapping[str, Any], services: Sequence[Service], pace: float, runbook: str
) -> list[Entry]:
    """Return the scrape and rule files of questions, services and components, for `place` below `directory`.

    Args:
        values: values for the templates.
        services: the services of the machine.
        pace: see `minipc.checks.time_scale`.
        runbook: address of the triage chapter.
    """
    rules = f"{directory}/rules.d"
    files: list[Entry] = [Absent(f"{directory}/{name}") for name in REMOVED]
    try:
        questions = of_questions(load(services), runbook, services)
        files.append(Content(dump(questions, pace), f"{rules}/checks.yml", check=CHECK_RULES))
        # One file for all services: nothing is left of one that is removed.
        files.append(Content(dump(of_services(services, runbook), pace), f"{rules}/services.yml", check=CHECK_RULES))
        scrape = rendered("prometheus", "services", values)
        target = f"{directory}/scrape.d/services.yml"
        files.append(Content(scaled(scrape, pace).encode(), target, check=CHECK_SCRAPE))
        for component in COMPONENTS:
            files += _of(component.name, directory, values, pace, runbook)
    except ConfigError as error:
        stop(error)
    return files


def registered_outside(directory: str, values: Mapping[str, Any], pace: float, runbook: str) -> list[Entry]:
    """Return the scrape and rule files of the off-site host's Prometheus, as `registered` does for the mini PC."""
    files: list[Entry] = []
    try:
        for component in ("host", "alertmanager", "prometheus"):
            files += _of(component, directory, values, pace, runbook)
        scrape = scaled(rendered("prometheus", "services", values), pace)
        files.append(Content(scrape.encode(), f"{directory}/scrape.d/outside.yml", check=CHECK_SCRAPE))
        content = rules("watcher", "outside", values, pace, runbook)
        files.append(Content(content, f"{directory}/rules.d/outside.yml", check=CHECK_RULES))
    except ConfigError as error:
        stop(error)
    return files


def rules(component: str, kind: str, values: Mapping[str, Any], pace: float, runbook: str) -> bytes:
    """Return the rule file `KIND.yml` of a component. Raise ConfigError if it is not valid."""
    return dump(of_component(component, rendered(component, kind, values), runbook), pace)


def _of(component: str, directory: str, values: Mapping[str, Any], pace: float, runbook: str) -> list[File]:
    found = []
    for kind, check in (("scrape", CHECK_SCRAPE), ("rules", CHECK_RULES)):
        if (ROOT / "templates" / component / f"{kind}.yml.j2").exists():
            scrape = kind == "scrape"
            content = (
                scaled(rendered(component, kind, values), pace).encode()
                if scrape
                else rules(component, kind, values, pace, runbook)
            )
            folder = "scrape.d" if scrape else "rules.d"
            found.append(Content(content, f"{directory}/{folder}/{component}.yml", check=check))
    return found


def rendered(component: str, kind: str, values: Mapping[str, Any]) -> str:
    """Return a file `KIND.yml` of a component. Raise ConfigError if it is not valid YAML."""
    file = render(component, File(f"{kind}.yml.j2", f"{kind}.yml"), values)
    assert isinstance(file, File)  # noqa: S101 - for the type checker: a file stays a file
    text = (file.content or b"").decode()
    try:
        yaml_text.parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"templates/{component}/{kind}.yml.j2 is not valid YAML: {error}", "fix the template"
        ) from None
    return text
