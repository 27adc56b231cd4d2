"""The rule files that components bring with them, rendered: with all settings, as the deploy does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipc import templates
from minipc.components import COMPONENTS
from minipc.config import Settings, load
from minipc.paths import ROOT


def values(settings: Settings) -> dict[str, Any]:
    """What rule files may use: the settings of every component, by its name."""
    return {name: getattr(settings, name) for name in Settings.model_fields}


def rendered_rules(**overrides: Any) -> dict[str, str]:
    """Component -> its rule file with the lab's settings, but for certificates as in production."""
    settings = load("lab", **({"edge_acme": "production"} | overrides))
    with_rules = [each.name for each in COMPONENTS if (ROOT / f"templates/{each.name}/rules.yml.j2").exists()]
    return {name: _render(name, values(settings)) for name in with_rules}


def _render(component: str, settings: Mapping[str, Any]) -> str:
    return templates.environment(ROOT / "templates" / component).get_template("rules.yml.j2").render(**settings)
