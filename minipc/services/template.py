"""Write a new service file: complete, with a comment on each section, and with examples of what it does not use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from minipc.config import services
from minipc.config.service import Service
from minipc.core.errors import ConfigError, RefusedError
from minipc.core.paths import ROOT

SCHEMA = ROOT / "docs/reference/service.schema.json"
FIRST_NODE_PORT = 30080
LAST_NODE_PORT = 32767
DATABASE_URL = "postgresql://{postgres.user}:{postgres.password}@{postgres.host}:{postgres.port}/{postgres.database}"


@dataclass
class Draft:
    """What is known about a service whose file is to be written. Keys and values are as in the service file.

    Attributes:
        front: name of the process behind the ingress.
        notes: what the file cannot express; one sentence each.
    """

    name: str
    image: str
    domains: list[str]
    node_port: int
    build: str | None = None
    user: int | None = None
    front: str = "web"
    processes: dict[str, dict[str, Any]] = field(default_factory=dict)
    migrate: dict[str, Any] | None = None
    health: dict[str, Any] = field(default_factory=lambda: {"live": "/healthz", "ready": "/healthz"})
    postgres: dict[str, Any] | None = None
    redis: dict[str, Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    writable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# Key, what it means, and an example for a service that does not use it. An example follows "#" without a space.
_SECTIONS: tuple[tuple[str, str, str], ...] = (
    ("summary", "What it is, half a sentence.", ""),
    ("image", "Name of the container image, without tag: which version runs is decided by a release.", ""),
    (
        "build",
        "Folder with a Containerfile, relative to this file: `minipc service image build NAME`. Without it, the image\n"
        "comes from a file (`minipc service image NAME FILE.tar`) or from its registry.",
        "build: ../../my-service",
    ),
    (
        "user",
        "The containers run as this number, never as root. It must be able to read the image's files.",
        "user: 10001",
    ),
    ("writable", "Folders in the container that may be written and are empty at each start.", "writable: [/tmp]"),
    (
        "ingress",
        "How users reach it. node_port: a port on 127.0.0.1 of the machine, another one for each service.",
        "",
    ),
    ("processes", "What always runs. command: arguments of the image's entrypoint, as in a compose file.", ""),
    (
        "cron",
        "What runs at certain times, UTC.",
        "cron:\n  nightly:\n    schedule: 0 3 * * *\n    command: [nightly]\n    alert_after: 26h",
    ),
    (
        "migrate",
        "Brings the database to the schema of a release. Runs before it, as the owner of the tables.",
        "migrate:\n  command: [migrate]",
    ),
    (
        "health",
        "Paths that answer 200. live: the process works. ready: it can serve users. before_writes (optional):\n"
        "writes can be stored; the ingress asks it before each write.",
        "",
    ),
    ("postgres", "The database; roles and passwords are made.", "postgres:\n  database: my_service"),
    ("redis", "cache: may forget. queue: forgets nothing, is backed up.", "redis:\n  kind: cache"),
    (
        "environment",
        "Variables of all processes. Placeholders: {service.name}, .version, .environment, .domain; {postgres.host},\n"
        ".port, .database, .user, .password, .password_file; the same for redis; {secret.KEY}.",
        "environment:\n  LOG_LEVEL: info",
    ),
    ("secrets", "Variables whose values only you know: `minipc secrets set NAME.STRIPE_KEY`.", "secrets: [STRIPE_KEY]"),
    (
        "volumes",
        "Folders that survive. They are backed up each night and before each release.",
        "volumes:\n  uploads:\n    mount: /data/uploads\n    size_gb: 10\n    data_class: must recover",
    ),
    (
        "data_classes",
        "Which promise each table has, with the column that tells how old a row is. A table in no class is reported.\n"
        "Classes: must recover, outbox, evidence, rebuildable, operational.",
        "data_classes:\n  must recover:\n    users: created_at",
    ),
    (
        "drill",
        "Questions to a restored database: SQL that returns one number.",
        'drill:\n  - name: there are users\n    sql: SELECT count(*) FROM users\n    expect: ">= 1"',
    ),
    ("smoke", "What a user would notice. A new version must pass it before users reach it.", ""),
    (
        "rehearsal",
        "What `minipc rehearse` stores like a user, and how it finds it again after the machine was lost.",
        "rehearsal:\n  writes:\n    - data_class: must recover\n      request: {method: POST, path: /users, "
        'body: {name: "{id}"}, status: 201}\n      find: SELECT name FROM users\n  reads:\n    - path: /',
    ),
    (
        "destinations",
        "Where it may connect to, besides its own database, cache and pods.",
        "destinations:\n  - network: internet\n    ports: [443]",
    ),
    ("alerts", "When it is reported.", "alerts:\n  answer_within_ms: 2000"),
)


def free_node_port(services: Iterable[Service]) -> int:
    """Return the lowest port for an ingress that no service uses. Raise ConfigError if there is none."""
    used = {each.ingress.node_port for each in services if each.ingress}
    for port in range(FIRST_NODE_PORT, LAST_NODE_PORT + 1):
        if port not in used:
            return port
    raise ConfigError("all ports for services are in use", "remove a service")


def render(draft: Draft, path: Path) -> str:
    """Return the text of a service file.

    Args:
        path: where it will be; the schema is named relative to it.
    """
    values = _values(draft)
    schema = os.path.relpath(SCHEMA, path.parent)
    lines = [
        f"# yaml-language-server: $schema={schema}",
        "#",
        "# docs/howto/your-own-service.md explains it. To use an example, remove the # before its lines.",
    ]
    if draft.notes:
        lines += ["#", "# Not taken over:", *(f"# - {note}" for note in draft.notes)]
    for key, comment, example in _SECTIONS:
        lines += ["", *(f"# {line}" for line in comment.replace("NAME", draft.name).splitlines())]
        if key in values:
            lines += yaml.safe_dump({key: values[key]}, sort_keys=False, width=110, allow_unicode=True).splitlines()
        else:
            lines += [f"#{line}" for line in example.splitlines()]
    return "\n".join(lines) + "\n"


def write(draft: Draft, path: Path, folders: Iterable[str | Path]) -> None:
    """Write a new service file, which is valid and fits the other services; otherwise write none.

    Args:
        folders: all folders with service files, as in `services_folders`.

    Raises:
        RefusedError: the file exists.
        ConfigError: a value is not valid, or another service claims it.
    """
    if path.exists():
        raise RefusedError(f"{path} exists", "edit it, or choose another name; nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(draft, path), encoding="utf-8")
    try:
        services.read(folders)
    except ConfigError as error:
        path.unlink()
        raise ConfigError(error.what, "correct the value and run the command again; no file was written") from None


def _values(draft: Draft) -> dict[str, Any]:
    """Return the sections that are in use."""
    processes = draft.processes or {draft.front: {"port": 8000}}
    values: Mapping[str, Any] = {
        "summary": draft.name,
        "image": draft.image,
        "build": draft.build,
        "user": draft.user,
        "writable": ["/tmp", *draft.writable] if draft.writable else None,  # noqa: S108 - a path in the container
        "ingress": _ingress(draft, processes),
        "processes": processes,
        "migrate": draft.migrate,
        "health": draft.health,
        "postgres": draft.postgres,
        "redis": draft.redis,
        "environment": draft.environment,
        "secrets": draft.secrets,
        "volumes": draft.volumes,
        "smoke": [{"name": "it answers", "request": {"path": draft.health["ready"]}}],
    }
    return {key: value for key, value in values.items() if value}


def _ingress(draft: Draft, processes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    several = sum("port" in each for each in processes.values()) > 1
    return {
        "domains": draft.domains,
        **({"process": draft.front} if several else {}),
        "node_port": draft.node_port,
        "body_limit_mb": 10,
        "response_limit_s": 60,
    }
