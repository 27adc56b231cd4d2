"""Render the rule files of the components with all settings, as the deploy does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipc.config import Settings, load
from minipc.config.components import COMPONENTS
from minipc.core import templating
from minipc.core.paths import ROOT


def values(settings: Settings) -> dict[str, Any]:
    """Return the variables of rule files: the settings of every component, by its name."""
    return {name: getattr(settings, name) for name in Settings.model_fields}


def rendered_rules(**overrides: Any) -> dict[str, str]:
    """Return each component's rule file, with the lab's settings, production's certificates and an off-site host.

    Those of the off-site host's Prometheus servers are named `watcher/KIND`.
    """
    settings = values(load("lab", **({"edge_acme": "production", "backups_offsite": "offsite"} | overrides)))
    with_rules = [each.name for each in COMPONENTS if (ROOT / f"templates/{each.name}/rules.yml.j2").exists()]
    found = {name: _render(name, "rules", settings) for name in with_rules}
    return found | {f"watcher/{kind}": _render("watcher", kind, settings) for kind in ("outside", "received")}


def _render(component: str, kind: str, settings: Mapping[str, Any]) -> str:
    return templating.environment(ROOT / "templates" / component).get_template(f"{kind}.yml.j2").render(**settings)
