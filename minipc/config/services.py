"""Read the service files, and derive from them what the components need."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from minipc.config.service import DataClassName, Service
from minipc.core import yaml_text
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT
from minipc.core.variables import SERVICES_VARIABLE
from minipc_machine.volume_files import Volume

MONITORING = "monitoring"
"""Login role and Redis user of the exporters."""
CACHE_COMMANDS = ["+@all", "-@dangerous", "-@admin", "-@scripting"]
MONITORING_COMMANDS = ["-@all", "+ping", "+info", "+config|get", "+client|list", "+slowlog", "+latency"]
DATA_CLASSES: tuple[DataClassName, ...] = get_args(DataClassName)


def own_or_example(own: str, example: str) -> list[str]:
    """Return the folders whose services the lab runs: the user's own if there are any, else an example.

    Args:
        own: the user's folder, relative to the repository.
        example: folder of an example.
    """
    if given := os.environ.get(SERVICES_VARIABLE):
        return given.split(":")
    return [own] if any((ROOT / own).glob("*.yaml")) else [example]


def read(folders: Iterable[str | Path]) -> tuple[Service, ...]:
    """Return the services of all folders, by name.

    Args:
        folders: relative to the repository, or absolute; a folder that does not exist has no services.

    Raises:
        ConfigError: a file is not valid, or two services claim the same name, domain, port, database or role.
    """
    found: dict[str, Service] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).glob("*.yaml")):
            if path.name.endswith((".checks.yaml", ".rules.yaml", ".log_queries.yaml")):
                continue
            service = read_file(path)
            if service.name in found:
                raise ConfigError(f"{path}: there is another service {service.name!r}", "rename one of the two files")
            found[service.name] = service
    services = tuple(found[name] for name in sorted(found))
    problems = conflicts(services)
    if problems:
        lines = "".join(f"\n  - {each}" for each in problems)
        raise ConfigError(f"the services do not fit together:{lines}", "correct the service files; nothing was changed")
    return services


def read_file(path: Path) -> Service:
    """Return the service that a file describes; its name is the file's.

    Raises:
        ConfigError: names the file and each key, what was given, what is allowed and the nearest valid key.
    """
    try:
        content = yaml_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "check the file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "fix the file; nothing was changed") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: it contains no keys", "services/README.md says what belongs there")
    own = [key for key in ("name", "folder") if key in content]
    if own:
        raise ConfigError(f"{path}: {own[0]}: unknown key; the file's own name is the service's", "remove the key")
    try:
        service = Service.model_validate({**content, "name": path.stem, "folder": str(path.parent.resolve())})
        problems = _missing_files(service)
        if not problems:
            return service
    except ValidationError as error:
        problems = [explain(each) for each in error.errors()]
    lines = "".join(f"\n  - {each}" for each in problems)
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    raise ConfigError(f"{path}: {count}{lines}", "correct the file; nothing was changed")


def _missing_files(service: Service) -> list[str]:
    """Return one sentence for each file that the service file names and that does not exist."""
    named = {f"alerts.{key}": getattr(service.alerts, key) for key in ("rules", "checks", "log_queries")}
    named["image_signer"] = service.image_signer
    paths = {key: service.beside(name) for key, name in named.items() if name}
    return [f"{key}: {path} does not exist" for key, path in paths.items() if not path.is_file()]


def explain(detail: ErrorDetails) -> str:
    """Return one sentence about an error: key, given value, allowed values, nearest match."""
    path = ".".join(str(part) for part in detail["loc"]) or "the file"
    given, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return f"{path}: missing; it is REQUIRED"
        case "extra_forbidden":
            known = _keys_at(detail["loc"][:-1])
            near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
            return f"{path}: unknown key; {hint}"
        case "literal_error":
            near = difflib.get_close_matches(str(given), str(context["expected"]).replace("'", "").split(), n=1)
            hint = f"; did you mean {near[0].rstrip(',')!r}?" if near else ""
            return f"{path} = {given!r}: allowed: {context['expected']}{hint}"
        case "value_error" if isinstance(given, dict):
            return f"{path}: {context['error']}"
        case "value_error":
            return f"{path} = {given!r}: {context['error']}"
        case "greater_than_equal":
            return f"{path} = {given!r}: too small; allowed: {context['ge']} or more"
        case "less_than_equal":
            return f"{path} = {given!r}: too large; allowed: {context['le']} or less"
        case _:
            return f"{path} = {given!r}: {detail['msg'].lower()}"


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Return the keys that are known at a place of the schema."""
    model: Any = Service
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[str(part)].annotation
        for option in get_args(model):
            if isinstance(option, type) and issubclass(option, BaseModel):
                model = option
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def conflicts(services: Sequence[Service]) -> list[str]:
    """Return what two services claim both, one sentence each."""
    claims: dict[tuple[str, str], str] = {}
    problems = []
    for service in services:
        for kind, value in _claims(service):
            other = claims.setdefault((kind, value), service.name)
            if other != service.name:
                problems.append(f"{kind} {value} is claimed by {other!r} and by {service.name!r}")
    return problems


def _claims(service: Service) -> Iterable[tuple[str, str]]:
    if service.ingress:
        yield from (("domain", name) for name in (*service.ingress.domains, *service.ingress.redirects))
        yield "node_port", str(service.ingress.node_port)
    # SERVICE-PART names units and volumes of the machine: "a-b" with "c" would be "a" with "b-c".
    parts = [*service.processes, *service.cron, "migrate"]
    yield from (("the unit", f"minipc-{service.name}-{part}") for part in parts)
    yield from (("the volume", f"{service.name}-{volume}") for volume in service.volumes)
    if service.postgres:
        yield "database", service.postgres.database
        yield from (("role", role) for role in service.postgres.roles)


def dns_records(services: Iterable[Service], *, ipv6: bool) -> list[dict[str, str]]:
    """Return the DNS records of all names that the public uses, as `DnsRecord` has them; AAAA records with `ipv6`."""
    return [
        {"name": name, "type": kind}
        for service in services
        if service.ingress and service.ingress.audience == "public"
        for name in (*service.ingress.domains, *service.ingress.redirects)
        for kind in (("A", "AAAA") if ipv6 else ("A",))
    ]


def databases(services: Iterable[Service]) -> list[dict[str, Any]]:
    """Return the databases, as `PostgresDatabase` has them."""
    found = []
    for service in services:
        if service.postgres:
            owner, runtime, reader = service.postgres.roles
            found.append(
                {
                    "name": service.postgres.database,
                    "owner": owner,
                    "runtime": runtime,
                    "reader": reader,
                    "extensions": [each.name for each in service.postgres.extensions],
                }
            )
    return found


def roles(services: Iterable[Service]) -> list[dict[str, Any]]:
    """Return the login roles, as `PostgresRole` has them."""
    names = [name for service in services if service.postgres for name in service.postgres.roles[:2]]
    return [*({"name": name, "memberships": []} for name in names), {"name": MONITORING, "memberships": ["pg_monitor"]}]


def redis_users(services: Iterable[Service]) -> list[dict[str, Any]]:
    """Return the users of the shared cache, as `RedisUser` has them."""
    users = [
        {"name": service.name, "keys": service.redis_keys, "commands": CACHE_COMMANDS}
        for service in services
        if service.redis and service.redis.kind == "cache"
    ]
    return [*users, {"name": MONITORING, "keys": [], "commands": MONITORING_COMMANDS}]


def volumes_of(services: Iterable[Service]) -> list[Volume]:
    """Return the volumes of all services, as the programs of the machine know them."""
    return [
        Volume(service.name, name, service.user, each.size_gb * 1024**3, each.sqlite, each.data_class)
        for service in services
        for name, each in service.volumes.items()
    ]


def extension_packages(services: Iterable[Service]) -> list[str]:
    """Return the Debian packages with the PostgreSQL extensions of all services."""
    return sorted(
        {
            each.package
            for service in services
            if service.postgres
            for each in service.postgres.extensions
            if each.package
        }
    )


def derived(services: Sequence[Service]) -> Mapping[str, Any]:
    """Return the settings that follow from the service files: key as in `Settings` -> value."""
    return {
        "postgres_databases": databases(services),
        "postgres_roles": roles(services),
        "redis_users": redis_users(services),
    }
