"""Evaluate the placeholders of a service's environment, and keep what is secret out of the manifests.

A variable whose text names the database, Redis or a secret is a key of a Kubernetes Secret; its text is evaluated on
the controller, which knows the values. Any other variable is written into the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from minipc.config import Settings
from minipc.config.service import PLACEHOLDER, Program, Service
from minipc.secrets.catalogue import postgres_password, redis_password, service_secret
from minipc.services.ports import redis_port

Purpose = Literal["run", "migrate", "drill"]
"""What a Secret is for: the running processes; migrations, as the owner of the tables; or migrations of the drill's
scratch server."""
MIGRATE = "migrate"
"""Name of the migration among the parts of a service."""
SECRETS_FOLDER = "/run/secrets/minipc"
"""Folder in the container with the password files."""
PASSWORD_KEYS = {"postgres": "POSTGRES_PASSWORD", "redis": "REDIS_PASSWORD"}
"""Keys of a Secret that are mounted as password files."""
VERSION = "{service.version}"
_SECRET_PARTS = ("postgres", "redis", "secret")


@dataclass(frozen=True)
class Variable:
    """A variable of a container.

    Attributes:
        name: its name.
        text: its value, in which only `{service.version}` is still a placeholder; empty if the value is secret.
        key: key of the Secret that contains its value; None if it is not secret.
    """

    name: str
    text: str
    key: str | None = None


def is_secret(text: str) -> bool:
    """Return whether the text names the database, Redis or a secret."""
    return any(part in _SECRET_PARTS for part, _ in PLACEHOLDER.findall(text))


def programs(service: Service) -> dict[str, Program]:
    """Return all parts of a service that run in containers: processes, cron jobs and the migration, by name."""
    migration = {MIGRATE: service.migrate} if service.migrate else {}
    return {**service.processes, **service.cron, **migration}


def secret_name(service: Service, purpose: Purpose = "run") -> str:
    """Return the name of the Secret in the service's namespace."""
    return service.name if purpose == "run" else f"{service.name}-{purpose}"


def variables(service: Service, environment: str, part: str = "") -> list[Variable]:
    """Return the variables of a container, sorted by name.

    Args:
        environment: name of the environment, "production" or "lab".
        part: name of the process or cron job, or "migrate"; empty: only the variables of all parts.
    """
    own = programs(service)[part].environment if part else {}
    found = {name: Variable(name, "", _key(name)) for name in service.secrets}
    for name, text in {**service.environment, **own}.items():
        if is_secret(text):
            found[name] = Variable(name, "", f"{part}.{name}" if name in own else _key(name))
        else:
            found[name] = Variable(name, _literal(text, service, environment))
    return [found[name] for name in sorted(found)]


def uses_password_files(service: Service, part: str = "") -> list[str]:
    """Return the keys of the Secret that a part reads as files."""
    own = programs(service)[part].environment if part else {}
    named = {each for text in {**service.environment, **own}.values() for each in PLACEHOLDER.findall(text)}
    return [key for group, key in PASSWORD_KEYS.items() if (group, "password_file") in named]


def secret_data(service: Service, settings: Settings, values: Mapping[str, str], purpose: Purpose) -> dict[str, str]:
    """Return the content of a Secret, sorted by key. The keys are the same for each purpose.

    Args:
        values: the values of `needed_secrets`, by the same keys.
    """
    known = _placeholders(service, settings, values, purpose)
    data = {key: known[group, "password"] for group, key in PASSWORD_KEYS.items() if (group, "password") in known}
    data |= {_key(name): known["secret", name] for name in service.secrets}
    data |= {_key(name): _evaluate(text, known) for name, text in service.environment.items() if is_secret(text)}
    for part, program in programs(service).items():
        secret = {name: text for name, text in program.environment.items() if is_secret(text)}
        data |= {f"{part}.{name}": _evaluate(text, known) for name, text in secret.items()}
    return dict(sorted(data.items()))


def _key(name: str) -> str:
    """Return the key of a variable of all parts. The names of the password files are taken."""
    return f"variable.{name}" if name in PASSWORD_KEYS.values() else name


def needed_secrets(service: Service) -> dict[str, str]:
    """Return the secrets that `secret_data` needs: key -> name in the secret store."""
    names = {f"secret.{key}": service_secret(service.name, key) for key in service.secrets}
    if service.postgres:
        owner, runtime, _ = service.postgres.roles
        names |= {"postgres.owner": postgres_password(owner), "postgres.runtime": postgres_password(runtime)}
    if service.redis:
        names["redis"] = redis_password(service.name)
    return names


def _placeholders(
    service: Service, settings: Settings, values: Mapping[str, str], purpose: Purpose
) -> dict[tuple[str, str], str]:
    """Return the value of each placeholder, by its two parts."""
    known = _public(service, settings.environment)
    known |= {("secret", key): values[f"secret.{key}"] for key in service.secrets}
    if service.postgres:
        owner, runtime, _ = service.postgres.roles
        scratch = purpose == "drill"
        known |= {
            ("postgres", "host"): settings.host.service_address if scratch else "postgres",
            ("postgres", "port"): str(settings.backups.drill_port if scratch else settings.postgres.port),
            ("postgres", "database"): service.postgres.database,
            ("postgres", "user"): runtime if purpose == "run" else owner,
            ("postgres", "password"): values["postgres.runtime" if purpose == "run" else "postgres.owner"],
            ("postgres", "password_file"): f"{SECRETS_FOLDER}/{PASSWORD_KEYS['postgres']}",
        }
    if service.redis:
        known |= {
            ("redis", "host"): "redis",
            ("redis", "port"): str(redis_port(settings, service)),
            ("redis", "user"): service.name,
            ("redis", "password"): values["redis"],
            ("redis", "password_file"): f"{SECRETS_FOLDER}/{PASSWORD_KEYS['redis']}",
        }
    return known


def _public(service: Service, environment: str) -> dict[tuple[str, str], str]:
    return {
        ("service", "name"): service.name,
        ("service", "environment"): environment,
        ("service", "domain"): service.domain or "",
    }


def _literal(text: str, service: Service, environment: str) -> str:
    """Return the text with everything evaluated but the version, which the release decides."""
    known = _public(service, environment)
    return PLACEHOLDER.sub(lambda found: known.get((found[1], found[2]), found[0]), text)


def _evaluate(text: str, known: Mapping[tuple[str, str], str]) -> str:
    """Return the text with all placeholders evaluated. The schema refuses unknown ones, and the version in a secret."""
    return PLACEHOLDER.sub(lambda found: known[found[1], found[2]], text)
