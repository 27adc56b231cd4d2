"""Reads `group_data/` into `Settings` and words what is wrong with it.

pyinfra reads the same files itself; `parse` turns what it read (`host.data`) into the same `Settings`.
"""

from __future__ import annotations

import ast
import difflib
import runpy
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from minipc.config import services
from minipc.config.schema import Settings
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT

# Keys of pyinfra and its SSH connector, and what the inventory pins about a machine.
INVENTORY_KEYS = ("machine_identity", "minipc_alias", "lan_address", "sides")
_FOREIGN_PREFIXES = ("ssh_", "_")
RENAMED = {"workload_runtime": "services_runtime", "watcher_ping_port": "watcher_port"}
"""Keys that are still accepted under their old name."""
MOVED = {
    "postgres_databases": "postgres",
    "postgres_roles": "postgres",
    "redis_users": "redis",
    "backups_data_classes": "data_classes",
    "backups_drill_queries": "drill",
    "edge_domain": "ingress.domains",
    "edge_upstream": "ingress.node_port",
    "edge_max_body_mb": "ingress.body_limit_mb",
}
"""Keys that the service files have replaced -> the key there."""
OLD_SLACK = ("alertmanager_slack", "alertmanager_slack_channel")
"""Keys that are still accepted; the channel `slack` of `alertmanager_channels` has replaced them."""
GONE = {
    "watcher_url": "use the list watcher_urls",
    "watcher_channels": "remove it; the off-site host uses alertmanager_channels",
    "watcher_email": "add a channel of the kind email to alertmanager_channels",
    "watcher_interval_s": "remove it; probes are 60 s apart",
    "watcher_timeout_s": "remove it; a probe has 5 s",
    "watcher_failures": "remove it; two failures in a row are reported",
    "watcher_repeat_s": "remove it; the priority of an alert says how often it is repeated",
    "watcher_ping_grace_s": "remove it; the mini PC's metrics replace the ping",
    "prometheus_error_budget_percent": "remove it; a service's own rules (alerts.rules) say what it may fail",
}
"""Keys that no longer exist -> what to do."""


def group_data(group: str, directory: Path = ROOT / "group_data") -> dict[str, Any]:
    """Merge the values of `all.py` and `<group>.py`; the latter wins.

    Raises:
        ConfigError: a file is missing or is not valid Python.
    """
    merged: dict[str, Any] = {}
    for name in ("all", group):
        path = directory / f"{name}.py"
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            values = runpy.run_path(str(path))
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing", "restore it from git") from None
        except Exception as error:
            raise ConfigError(f"{path} cannot be read: {error}", "fix the file and run again") from error
        # As pyinfra does it: imported names are not data.
        imported = {
            alias.asname or alias.name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        merged |= {key: value for key, value in values.items() if not key.startswith("_") and key not in imported}
    return merged


def load(group: str, directory: Path = ROOT / "group_data", **overrides: Any) -> Settings:
    """Return the settings of a group (`lab` or `production`).

    Raises:
        ConfigError: names each key, what was given, what is allowed and the nearest valid value.
    """
    return parse(group_data(group, directory) | overrides, source=f"group_data/{group}.py")


def parse(values: Mapping[str, Any], source: str = "group_data") -> Settings:
    """Check flat `component_key` values.

    Raises:
        ConfigError: as in `load`.
    """
    tree, problems = _nest(values)
    declared = services.read(values.get("services_folders", ()))
    tree["services"]["declared"] = declared
    for key, value in services.derived(declared).items():
        section, _, name = key.partition("_")
        tree[section][name] = value
    if tree["firewall"].get("operator_access", "") is None:
        tree["firewall"]["operator_access"] = "networks"
    if tree["dns"].get("records", ()) is None:
        tree["dns"]["records"] = services.dns_records(declared, ipv6=values.get("dns_ipv6") is not None)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(detail) for detail in error.errors()]
    else:
        if not problems:
            return settings
    lines = "".join(f"\n  - {problem}" for problem in problems)
    raise ConfigError(
        f"{source}: {len(problems)} problem{'s' if len(problems) != 1 else ''} in the configuration{lines}",
        "correct the keys in group_data/ or inventory/; nothing was changed",
    )


def _nest(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    sections = [name for name, field in Settings.model_fields.items() if _is_model(field.annotation)]
    known = {f"{section}_{key}" for section in sections for key in _model(section).model_fields}
    known |= set(Settings.model_fields) - set(sections)
    known -= {*services.derived(()), "services_declared"}
    tree: dict[str, Any] = {section: {} for section in sections}
    problems = []
    for key, value in _slack_as_a_channel(values).items():
        key = RENAMED.get(key, key)
        if key in MOVED:
            problems.append(f"{key}: it is now `{MOVED[key]}` in services/NAME.yaml")
        elif key in GONE:
            problems.append(f"{key}: it no longer exists; {GONE[key]}")
        elif key in known:
            section = next((name for name in sections if key.startswith(f"{name}_")), None)
            if section is None:
                tree[key] = value
            else:
                tree[section][key.removeprefix(f"{section}_")] = value
        elif not key.startswith(_FOREIGN_PREFIXES) and key not in INVENTORY_KEYS:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "group_data/all.py lists all keys"
            problems.append(f"{key}: unknown key; {hint}")
    return tree, problems


def _slack_as_a_channel(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values with the old keys for Slack as an entry of `alertmanager_channels`, or as none, on purpose."""
    if not any(key in values for key in OLD_SLACK):
        return values
    wanted = values.get(OLD_SLACK[0], True)
    slack = {"name": "slack", "kind": "slack", "channel": values.get(OLD_SLACK[1])}
    others = [each for each in values.get("alertmanager_channels", ()) if each.get("name") != "slack"]
    new: dict[str, Any] = {"alertmanager_channels": [*([slack] if wanted else []), *others]}
    new |= {} if wanted else {"alertmanager_unattended": True}
    return {key: value for key, value in values.items() if key not in OLD_SLACK} | new


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _model(section: str) -> type[BaseModel]:
    annotation = Settings.model_fields[section].annotation
    assert isinstance(annotation, type)  # noqa: S101 - _nest only asks for sections that are models
    return annotation


def _explain(detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    if not path:  # a rule between components
        return str(detail.get("ctx", {}).get("error", detail["msg"]))
    key = path[0] if len(path) == 1 else f"{path[0]}_{path[1]}" + "".join(f"[{part}]" for part in path[2:])
    given, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return f"{key}: missing; it is REQUIRED, see group_data/all.py"
        case "extra_forbidden":
            return f"{key}: unknown key"
        case "literal_error":
            allowed = _literals(detail["loc"])
            near = difflib.get_close_matches(str(given), [str(value) for value in allowed], n=1, cutoff=0.3)
            return f"{key} = {given!r}: allowed: {context['expected']}" + (
                f"; did you mean {near[0]!r}?" if near else ""
            )
        case "greater_than_equal":
            return f"{key} = {given!r}: too small; allowed: {context['ge']} or more; nearest: {context['ge']}"
        case "less_than_equal":
            return f"{key} = {given!r}: too large; allowed: {context['le']} or less; nearest: {context['le']}"
        case "value_error" if isinstance(given, dict):  # a rule between keys
            return f"{key}: {context['error']}"
        case "value_error":
            return f"{key} = {given!r}: {context['error']}"
        case _:
            return f"{key} = {given!r}: {detail['msg'].lower()}{_converted(given, detail['type'])}"


def _converted(given: Any, kind: str) -> str:
    """Suggest the nearest value of the right type, for example for a number in quotes."""
    try:
        if kind == "int_type":
            return f"; did you mean {int(given)}?"
        if kind == "string_type" and isinstance(given, int | float):
            return f"; did you mean {str(given)!r}?"
        if kind == "list_type" and isinstance(given, str):
            return f"; did you mean [{given!r}]?"
    except (TypeError, ValueError):
        pass
    return ""


def _literals(location: tuple[int | str, ...]) -> tuple[Any, ...]:
    model: Any = Settings
    for part in location:
        if not (isinstance(part, str) and _is_model(model)):
            return ()
        model = model.model_fields[part].annotation
    options = get_args(model)
    if isinstance(model, types.UnionType):
        return tuple(value for option in options for value in get_args(option))
    return options
