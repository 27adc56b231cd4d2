"""Read a docker-compose file as the beginning of a service file; name each feature that has no counterpart.

Format: https://github.com/compose-spec/compose-spec, as docker compose 2 reads it. Variables from a `.env` file are not
read: a variable without default becomes a secret of the service, because `.env` is where compose users keep them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from minipc.config.service import NO_REGISTRY
from minipc.core import yaml_text
from minipc.core.errors import ConfigError
from minipc.services.template import Draft

_POSTGRES = re.compile(r"(^|/)(postgres|postgresql|postgis|pgvector|timescaledb)(:|@|$)")
_REDIS = re.compile(r"(^|/)(redis|valkey|keydb|redis-stack-server)(:|@|$)")
_EXTENSIONS = {"postgis": "postgis", "pgvector": "vector"}
_PACKAGES = {"postgis": "postgresql-17-postgis-3", "vector": "postgresql-17-pgvector"}
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])([^}]*))?\}?")
_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|PRIVATE|CREDENTIAL|API_?KEY|_KEY$|_DSN$", re.IGNORECASE)
_URL = re.compile(r"^(?P<scheme>(?:postgres|postgresql|redis|rediss)[a-z0-9+]*)://(?P<rest>[^?]*)(?P<query>\?.*)?$")
_HEALTH = re.compile(r"https?://[^/\s'\"]+(/[^\s'\"|;&]*)")
_SIZES = {"": 1 / 1024**2, "b": 1 / 1024**2, "k": 1 / 1024, "kb": 1 / 1024, "m": 1, "mb": 1, "g": 1024, "gb": 1024}
_VOLUME_GB = 10
_TAKEN = frozenset(
    {"image", "build", "environment", "volumes", "ports", "healthcheck", "command", "entrypoint", "depends_on"}
    | {"secrets", "user", "mem_limit", "scale", "tmpfs", "expose", "deploy"}
)
# Features that need no counterpart: what they ask for is always so here.
_ALWAYS_SO = frozenset({"restart", "container_name", "hostname", "read_only", "init", "networks", "stop_grace_period"})
_REASONS = {
    "env_file": "its variables are not read; write them into environment, or declare them in secrets",
    "privileged": "containers never get privileges",
    "cap_add": "containers never get privileges",
    "devices": "containers never get devices",
    "network_mode": "each service has its network",
    "extra_hosts": "names are resolved by DNS",
    "labels": "labels of a reverse proxy are ingress here",
    "logging": "all output is collected",
    "configs": "put the file into the image",
    "profiles": "describe what is not always needed in a separate service file",
    "links": "a service reaches its own database, cache and pods",
    "working_dir": "set it in the image",
    "dns": "the machine's resolver is used",
}


@dataclass
class _Reader:
    """What has been found while a file is read."""

    draft: Draft
    databases: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    caches: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def note(self, where: str, what: str) -> None:
        self.draft.notes.append(f"{where}: {what}")


def read(path: Path, name: str, domains: list[str], node_port: int, front: str | None = None) -> Draft:
    """Return what a compose file says about a service.

    Args:
        front: the compose service behind the ingress; None: the only one that publishes a port.

    Raises:
        ConfigError: the file is not a compose file, or it does not tell which of its services users reach.
    """
    content = _parse(path)
    reader = _Reader(Draft(name, "", domains, node_port))
    programs: dict[str, Mapping[str, Any]] = {}
    for each, about in content["services"].items():
        image = str(about.get("image", ""))
        kind = reader.databases if _POSTGRES.search(image) else reader.caches if _REDIS.search(image) else programs
        kind[each] = about
    chosen = _front(path, programs, front)
    reader.draft.front = _part_name(chosen)
    _image(reader, path, chosen, programs[chosen])
    _data(reader)
    migration = _migration(programs, chosen)
    for each, about in programs.items():
        if not _same_image(about, programs[chosen]):
            reader.note(f"services.{each}", "another image; describe it in a separate service file")
        elif each == migration:
            reader.draft.migrate = _program(reader, each, about)
        else:
            _process(reader, each, about, is_front=each == chosen)
    for key in content.keys() - {"services", "version", "name", "volumes", "networks", "secrets"}:
        if not key.startswith("x-"):
            reader.note(key, _REASONS.get(key, "no counterpart"))
    for volume, about in (content.get("volumes") or {}).items():
        if about:
            reader.note(f"volumes.{volume}", f"{', '.join(about)}: a volume is a folder on the machine")
    return reader.draft


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = yaml_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "check the file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "fix the file; nothing was written") from None
    services = content.get("services") if isinstance(content, dict) else None
    if not isinstance(services, dict) or not all(isinstance(each, dict) for each in services.values()) or not services:
        raise ConfigError(f"{path} is not a compose file: it has no `services`", "`docker compose config` checks it")
    return dict(content)


def _front(path: Path, programs: Mapping[str, Mapping[str, Any]], wanted: str | None) -> str:
    names = ", ".join(programs) or "none"
    if wanted and wanted not in programs:
        raise ConfigError(
            f"{path} has no service {wanted!r} that is neither database nor cache; it has: {names}",
            "give one of these names to --service",
        )
    published = [name for name, about in programs.items() if about.get("ports")] or list(programs)
    if wanted or len(published) == 1:
        return wanted or published[0]
    raise ConfigError(f"{path}: which of {names} do users reach?", "name one of them: --service NAME")


def _image(reader: _Reader, path: Path, name: str, about: Mapping[str, Any]) -> None:
    image = _text(str(about.get("image", "")))
    bare = re.sub(r"(@.*|:[^/:]*)$", "", image)
    if image != bare:
        reader.note(f"services.{name}.image", f"{image.removeprefix(bare)}: a release chooses the version")
    reader.draft.image = bare or f"{NO_REGISTRY}/{reader.draft.name}"
    if about.get("build"):
        build = about["build"] if isinstance(about["build"], dict) else {"context": about["build"]}
        reader.draft.build = str((path.parent / str(build.get("context", "."))).resolve())
        for key in build.keys() - {"context"}:
            reader.note(f"services.{name}.build.{key}", "the file Containerfile of the folder is built as it is")
    if about.get("user"):
        number = str(about["user"]).partition(":")[0]
        if number.isdigit() and number != "0":
            reader.draft.user = int(number)
        else:
            reader.note(f"services.{name}.user", f"{about['user']}: write its number, never 0, into user")


def _data(reader: _Reader) -> None:
    """Take over databases and caches, and name what has no counterpart."""
    draft = reader.draft
    for name, about in reader.databases.items():
        if draft.postgres:
            reader.note(f"services.{name}", "a second database; a service has one")
            continue
        draft.postgres = {"database": re.sub(r"[^a-z0-9_]", "_", draft.name)}
        for image, extension in _EXTENSIONS.items():
            if image in str(about["image"]):
                draft.postgres["extensions"] = [{"name": extension, "package": _PACKAGES[extension]}]
        reader.note(f"services.{name}", "its data is imported with `minipc service import`; version 17 is used")
    for name, about in reader.caches.items():
        keeps = re.search(r"appendonly|noeviction|--save", str(about.get("command", "")))
        draft.redis = {"kind": "queue" if keeps or about.get("volumes") else "cache"}
        reader.note(f"services.{name}", f"it is `redis: {{kind: {draft.redis['kind']}}}`; its data is not imported")


def _migration(programs: Mapping[str, Mapping[str, Any]], front: str) -> str | None:
    """Return the service that must have ended before the front starts: the migration."""
    needs = programs[front].get("depends_on")
    for name, how in needs.items() if isinstance(needs, dict) else ():
        if name in programs and (how or {}).get("condition") == "service_completed_successfully":
            return str(name)
    return None


def _same_image(about: Mapping[str, Any], front: Mapping[str, Any]) -> bool:
    return (about.get("image"), about.get("build")) == (front.get("image"), front.get("build"))


def _process(reader: _Reader, name: str, about: Mapping[str, Any], *, is_front: bool) -> None:
    process = _program(reader, name, about)
    deploy = about.get("deploy") or {}
    replicas = about.get("scale") or deploy.get("replicas")
    if replicas:
        process["replicas"] = int(replicas)
    ports = [_container_port(each) for each in [*(about.get("ports") or []), *(about.get("expose") or [])]]
    if is_front:
        process["port"] = ports[0] if ports else 8000
        if not ports:
            reader.note(f"services.{name}.ports", "none; port 8000 is assumed")
        _health(reader, name, about.get("healthcheck"))
    elif about.get("healthcheck"):
        reader.note(f"services.{name}.healthcheck", "only the process behind the ingress has one")
    for port in ports[1:] if is_front else ports:
        reader.note(f"services.{name}.ports", f"{port}: only one port of one process is reached by users")
    reader.draft.processes[_part_name(name)] = process
    _volumes(reader, name, about.get("volumes") or [])


def _program(reader: _Reader, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a container runs, and take over what belongs to the whole service."""
    program: dict[str, Any] = {}
    for key in ("command", "entrypoint"):
        if about.get(key):
            given = about[key]
            words = given if isinstance(given, list) else shlex.split(given)
            program[key] = [_text(str(each)) for each in words]
    memory = about.get("mem_limit") or _inside(about, "deploy", "resources", "limits", "memory")
    if memory and (size := _megabytes(str(memory))):
        program["memory_mb"] = size
    _environment(reader, name, about.get("environment") or {}, program)
    _secrets(reader, name, about.get("secrets") or [])
    tmpfs = about.get("tmpfs") or []
    for each in [tmpfs] if isinstance(tmpfs, str) else tmpfs:
        folder = str(each).partition(":")[0]
        if folder not in ("/tmp", *reader.draft.writable):  # noqa: S108 - a path in the container
            reader.draft.writable.append(folder)
    for key in about.keys() - _TAKEN - _ALWAYS_SO:
        if not key.startswith("x-"):
            reader.note(f"services.{name}.{key}", _REASONS.get(key, "no counterpart"))
    for key in (about.get("deploy") or {}).keys() - {"replicas", "resources", "restart_policy", "mode"}:
        reader.note(f"services.{name}.deploy.{key}", "no counterpart")
    return program


def _environment(reader: _Reader, name: str, given: Any, program: dict[str, Any]) -> None:
    pairs = given.items() if isinstance(given, dict) else (str(each).partition("=")[::2] for each in given)
    common = reader.draft.environment
    for variable, raw in pairs:
        value = "" if raw is None else str(raw).lower() if isinstance(raw, bool) else str(raw)
        text = _placeholders(reader, variable, value)
        if text is None:
            if variable not in reader.draft.secrets:
                reader.draft.secrets.append(variable)
            common.pop(variable, None)
        elif common.setdefault(variable, text) != text:
            program.setdefault("environment", {})[variable] = text


def _placeholders(reader: _Reader, variable: str, value: str) -> str | None:
    """Return the text of a variable in the service file; None if it is a secret."""
    url = _URL.match(_text(value))
    host = re.split(r"[/:]", url["rest"].rpartition("@")[2])[0] if url else ""
    if url and host in reader.databases and reader.draft.postgres:
        address = "{postgres.user}:{postgres.password}@{postgres.host}:{postgres.port}/{postgres.database}"
        return f"{url['scheme']}://{address}{url['query'] or ''}"
    if url and host in reader.caches:
        number = url["rest"].rpartition("/")[2] if "/" in url["rest"] else "0"
        return f"{url['scheme']}://{{redis.user}}:{{redis.password}}@{{redis.host}}:{{redis.port}}/{number}"
    for kind, found in (("postgres", reader.databases), ("redis", reader.caches)):
        if value in found:
            return f"{{{kind}.host}}"
    for about in reader.databases.values():
        known = _pairs(about.get("environment") or {})
        for key, placeholder in (("PASSWORD", "password"), ("USER", "user"), ("DB", "database")):
            same = known.get(f"POSTGRES_{key}")
            if (
                same
                and value == same
                and (key != "DB" or "NAME" in variable or "DB" in variable or "DATABASE" in variable)
            ):
                return f"{{postgres.{placeholder}}}"
    if value == "5432" and reader.databases:
        return "{postgres.port}"
    if value == "6379" and reader.caches:
        return "{redis.port}"
    unset = any(not operator for _, operator, _ in _VARIABLE.findall(value))
    if not value or unset or _SECRET.search(variable):
        return None
    return _text(value)


def _pairs(given: Any) -> dict[str, str]:
    if isinstance(given, dict):
        return {key: str(value) for key, value in given.items()}
    return dict(str(each).partition("=")[::2] for each in given)


def _secrets(reader: _Reader, name: str, given: list[Any]) -> None:
    for each in given:
        source = str(each.get("source") if isinstance(each, dict) else each)
        variable = re.sub(r"[^A-Za-z0-9_]", "_", source).upper()
        if variable not in reader.draft.secrets:
            reader.draft.secrets.append(variable)
        reader.note(f"services.{name}.secrets.{source}", f"a file there; here it is the variable {variable}")


def _health(reader: _Reader, name: str, given: Any) -> None:
    where = f"services.{name}.healthcheck"
    if not given:
        reader.note(where, "none; /healthz is assumed")
        return
    test = given.get("test", "")
    found = _HEALTH.search(test if isinstance(test, str) else " ".join(map(str, test)))
    if not found:
        reader.note(where, "its test has no URL; /healthz is assumed")
        return
    reader.draft.health = {"live": found.group(1), "ready": found.group(1)}
    start = re.match(r"^(?:(\d+)m)?(?:(\d+)s)?$", str(given.get("start_period", "")))
    if start and any(start.groups()):
        reader.draft.health["start_limit_s"] = max(1, 60 * int(start.group(1) or 0) + int(start.group(2) or 0))


def _volumes(reader: _Reader, name: str, given: list[Any]) -> None:
    for each in given:
        source, mount, kind, read_only = _volume(each)
        where = f"services.{name}.volumes.{source or mount}"
        if kind == "tmpfs":
            reader.draft.writable.append(mount)
        elif kind == "bind" and read_only:
            reader.note(where, f"a file or folder of that computer at {mount}; put it into the image")
        elif not source:
            reader.draft.writable.append(mount)
            reader.note(where, "it has no name: it is writable and empty at each start")
        else:
            volume = _part_name(source.rstrip("/").rpartition("/")[2])
            about = reader.draft.volumes.setdefault(
                volume, {"mount": mount, "size_gb": _VOLUME_GB, "data_class": "must recover", "processes": []}
            )
            about["processes"].append(_part_name(name))
            if about["mount"] != mount:
                reader.note(where, f"it has one mount in all processes, {about['mount']}, not {mount}")
            if kind == "bind":
                reader.note(where, f"it becomes the volume {volume}; import its files with --files")


def _volume(given: Any) -> tuple[str, str, str, bool]:
    """Return source, path in the container, kind ("volume", "bind" or "tmpfs"), and whether it is read-only."""
    if isinstance(given, dict):
        kind, read_only = str(given.get("type", "volume")), bool(given.get("read_only"))
        return str(given.get("source") or ""), str(given.get("target", "")), kind, read_only
    parts = str(given).split(":")
    if len(parts) == 1:
        return "", parts[0], "volume", False
    kind = "bind" if parts[0].startswith((".", "/", "~")) else "volume"
    return parts[0], parts[1], kind, "ro" in parts[2:]


def _container_port(given: Any) -> int:
    text = str(given.get("target")) if isinstance(given, dict) else _text(str(given))
    found = re.search(r"(\d+)(?:-\d+)?(?:/\w+)?$", text)
    return int(found.group(1)) if found else 0


def _text(value: str) -> str:
    """Return a value with its defaults, and $$ as $."""
    return _VARIABLE.sub(lambda found: found.group(3) or "", value.replace("$$", "\0")).replace("\0", "$")


def _megabytes(text: str) -> int | None:
    found = re.match(r"^([\d.]+)\s*([a-zA-Z]*)$", text)
    if not found or found.group(2).lower().removesuffix("i") not in _SIZES:
        return None
    return max(16, int(float(found.group(1)) * _SIZES[found.group(2).lower()]))


def _inside(about: Mapping[str, Any], *keys: str) -> Any:
    found: Any = about
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _part_name(name: str) -> str:
    """Return a name as parts of a service have it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30].strip("-") or "web"
