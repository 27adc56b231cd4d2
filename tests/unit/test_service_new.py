"""`minipc service new`: the file it writes, what it takes over from a compose file, the schema for editors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from minipc.cli import service as cli
from minipc.config.service import Service
from minipc.config.services import read_file
from minipc.core.errors import ConfigError, RefusedError
from minipc.services import compose, schema, template

DOMAIN = ["--domain", "shop.example.org"]
COMPOSE = """\
services:
  web:
    image: ghcr.io/you/shop:1.2
    command: gunicorn shop.wsgi -b 0.0.0.0:8080
    ports: ["80:8080", "9000:9000"]
    environment:
      - DATABASE_URL=postgresql+psycopg://shop:hunter2@db:5432/shop?sslmode=disable
      - CELERY_BROKER=redis://cache:6379/1
      - DB_HOST=db
      - DB_PASS=hunter2
      - STRIPE_KEY=sk_live_hunter2
      - MAIL_FROM=${MAIL_FROM}
      - LOG_LEVEL=${LOG_LEVEL:-info}
      - PRICE=$$5
    env_file: .env
    volumes: ["uploads:/data/uploads", "./media:/data/media", "./nginx.conf:/etc/x.conf:ro", "/var/cache/x"]
    healthcheck: {test: ["CMD", "curl", "-f", "http://localhost:8080/health/"], interval: 5s, start_period: 1m30s}
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
    deploy: {replicas: 2, resources: {limits: {memory: 512M}}, placement: {}}
    user: "1000:1000"
    tmpfs: /var/run
    privileged: true
    secrets: [signing]
    restart: always
  celery_worker:
    image: ghcr.io/you/shop:1.2
    command: ["celery", "-A", "shop"]
    environment: {LOG_LEVEL: debug}
    volumes: ["uploads:/data/uploads"]
  migrate:
    image: ghcr.io/you/shop:1.2
    command: python manage.py migrate
  db:
    image: postgis/postgis:16
    environment: {POSTGRES_USER: shop, POSTGRES_PASSWORD: hunter2, POSTGRES_DB: shop}
  cache: {image: "redis:7", command: "redis-server --appendonly yes"}
  mail: {image: mailhog/mailhog}
volumes: {uploads: {driver_opts: {type: nfs}}, pg: {}}
configs: {a: {file: b}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the service files."""
    monkeypatch.setattr(
        "minipc.services.create.group_data", lambda environment: {"services_folders": [str(tmp_path / "services")]}
    )
    return tmp_path / "services"


def new(*arguments: str) -> Result:
    return CliRunner().invoke(cli.service, ["new", *arguments])


def from_compose(tmp_path: Path, text: str, front: str | None = None) -> template.Draft:
    path = tmp_path / "docker-compose.yml"
    path.write_text(text)
    return compose.read(path, "shop", ["shop.example.org"], 30080, front)


def test_the_file_is_valid_at_once(folder):
    result = new("shop", "--image", "ghcr.io/you/shop", *DOMAIN, "--port", "3000", "--health", "/ok")
    assert result.exit_code == 0, result.output
    found = read_file(folder / "shop.yaml")
    assert (found.domain, found.image) == ("shop.example.org", "ghcr.io/you/shop")
    assert found.front
    assert found.front[1].port == 3000
    assert found.health
    assert (found.health.live, found.health.ready) == ("/ok", "/ok")
    assert found.postgres
    assert found.environment["DATABASE_URL"].startswith("postgresql://{postgres.user}:")


def test_every_example_in_it_is_valid_too(folder):
    new("shop", "--image", "ghcr.io/you/shop", *DOMAIN, "--no-database")
    text = (folder / "shop.yaml").read_text()
    examples = re.sub(r"(?m)^#(?! [^ ])", "", text)
    (folder / "shop.yaml").write_text(examples)
    service = read_file(folder / "shop.yaml")
    unused = {"image_signer", "verify", "name", "folder", "manifests", "rollback"}
    assert set(yaml.safe_load(examples)) == set(Service.model_fields) - unused
    assert service.rehearsal
    assert service.cron


def test_each_service_has_a_port_of_its_own(folder):
    new("shop", "--image", "a", *DOMAIN)
    new("blog", "--image", "a", "--domain", "blog.example.org")
    ports = [read_file(folder / f"{name}.yaml").ingress.node_port for name in ("shop", "blog")]
    assert ports == [template.FIRST_NODE_PORT, template.FIRST_NODE_PORT + 1]


def test_nothing_is_overwritten(folder):
    new("shop", "--image", "a", *DOMAIN)
    before = (folder / "shop.yaml").read_text()
    assert isinstance(new("shop", "--image", "b", *DOMAIN).exception, RefusedError)
    assert (folder / "shop.yaml").read_text() == before


def test_it_says_where_the_schema_is(folder):
    new("shop", "--image", "a", *DOMAIN)
    first = (folder / "shop.yaml").read_text().splitlines()[0]
    relative = first.removeprefix("# yaml-language-server: $schema=")
    assert (folder / relative).resolve() == template.SCHEMA


def test_an_image_or_a_folder_is_needed(folder):
    result = new("shop", *DOMAIN)
    assert result.exit_code == 2
    assert "--image NAME, --build FOLDER or --from" in result.output
    assert not folder.exists()


# --- from a compose file ---------------------------------------------------------------------------------------------


def test_what_is_taken_over(tmp_path):
    draft = from_compose(tmp_path, COMPOSE)
    path = tmp_path / "shop.yaml"
    template.write(draft, path, [tmp_path])
    found = read_file(path)
    assert found.image == "ghcr.io/you/shop"
    assert found.user == 1000
    web, worker = found.processes["web"], found.processes["celery-worker"]
    assert web.command == ["gunicorn", "shop.wsgi", "-b", "0.0.0.0:8080"]
    assert (web.port, web.replicas, web.memory_mb) == (8080, 2, 512)
    assert (worker.command, worker.environment) == (["celery", "-A", "shop"], {"LOG_LEVEL": "debug"})
    assert found.migrate
    assert found.migrate.command == ["python", "manage.py", "migrate"]
    assert found.health
    assert (found.health.ready, found.health.start_limit_s) == ("/health/", 90)
    assert found.postgres
    assert [each.name for each in found.postgres.extensions] == ["postgis"]
    assert found.redis
    assert found.redis.kind == "queue"
    assert found.environment == {
        "DATABASE_URL": "postgresql+psycopg://{postgres.user}:{postgres.password}@{postgres.host}:{postgres.port}"
        "/{postgres.database}?sslmode=disable",
        "CELERY_BROKER": "redis://{redis.user}:{redis.password}@{redis.host}:{redis.port}/1",
        "DB_HOST": "{postgres.host}",
        "DB_PASS": "{postgres.password}",
        "LOG_LEVEL": "info",
        "PRICE": "$5",
    }
    assert found.secrets == ["STRIPE_KEY", "MAIL_FROM", "SIGNING"]
    assert found.volumes["uploads"].processes == ["web", "celery-worker"]
    assert found.volumes["media"].mount == "/data/media"
    assert found.writable == ["/tmp", "/var/run", "/var/cache/x"]
    assert "hunter2" not in path.read_text()


@pytest.mark.parametrize(
    "named",
    [
        "services.web.image: :1.2",
        "services.web.env_file",
        "services.web.privileged",
        "services.web.ports: 9000",
        "services.web.volumes../nginx.conf",
        "services.web.volumes../media",
        "services.web.deploy.placement",
        "services.web.secrets.signing",
        "services.db",
        "services.cache",
        "services.mail",
        "volumes.uploads",
        "configs",
    ],
)
def test_each_feature_without_counterpart_is_named(tmp_path, named):
    draft = from_compose(tmp_path, COMPOSE)
    assert [note for note in draft.notes if note.startswith(named)]
    assert f"# - {named}" in template.render(draft, tmp_path / "shop.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kube-system", "--image", "x", "--domain", "b.example.org"], "belongs to the platform"),
        (["other", "--image", "ghcr.io/you/shop:1.2", "--domain", "b.example.org"], "no tag"),
        (["other", "--image", "x", "--domain", "https://b.example.org"], "not a domain name"),
        (["other", "--image", "x", "--domain", "b.example.org", "--health", "ok"], "not a path"),
        (["other", "--image", "x", *DOMAIN], "domain shop.example.org is claimed by"),
    ],
)
def test_a_file_that_is_not_valid_or_fits_no_other_is_not_written(folder, arguments, said):
    assert new("shop", "--image", "x", *DOMAIN).exit_code == 0
    result = new(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert said in result.exception.what
    assert [path.name for path in folder.glob("*.yaml")] == ["shop.yaml"]


@pytest.mark.parametrize("name", ["My_Shop", "../shop", "9lives", "a" * 31])
def test_a_name_that_is_not_usable_is_refused_first(folder, name):
    result = new(name, "--image", "x", *DOMAIN)
    assert result.exit_code == 2
    assert "lower-case letters" in result.output
    assert not folder.exists()


def test_an_empty_list_says_how_to_describe_a_service(folder):
    result = CliRunner().invoke(cli.service, ["list"])
    assert "there are no services yet" in result.output
    assert "minipc service new" in result.output


def test_a_service_that_is_built_there(tmp_path):
    draft = from_compose(tmp_path, "services: {app: {build: {context: ., args: {A: 1}}, expose: [3000]}}")
    assert (draft.image, draft.build) == ("minipc.local/shop", str(tmp_path))
    assert draft.processes == {"app": {"port": 3000}}
    assert any("build.args" in note for note in draft.notes)
    assert any("healthcheck: none" in note for note in draft.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "is not a compose file"),
        ("services: 5", "is not a compose file"),
        ("services: {a: 5}", "is not a compose file"),
        ("a: [", "is not valid YAML"),
        ("services: {a: {image: x, ports: [1]}, b: {image: y, ports: [2]}}", "which of a, b do users reach"),
        ("services: {db: {image: postgres}}", "which of none do users reach"),
    ],
)
def test_what_cannot_be_read(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        from_compose(tmp_path, text)


def test_one_of_several_is_chosen(tmp_path):
    text = "services: {a: {image: x, ports: [1]}, b: {image: y, ports: ['2:3000']}}"
    draft = from_compose(tmp_path, text, front="b")
    assert draft.processes == {"b": {"port": 3000}}
    with pytest.raises(ConfigError, match="no service 'c'"):
        from_compose(tmp_path, text, front="c")


# --- the schema ------------------------------------------------------------------------------------------------------


def test_the_published_schema_is_current():
    assert template.SCHEMA.read_text(encoding="utf-8") == schema.render(), (
        "python -c 'from minipc.services import schema, template; template.SCHEMA.write_text(schema.render())'"
    )


def test_the_schema_describes_each_key_and_allows_no_other():
    found: dict[str, Any] = json.loads(template.SCHEMA.read_text(encoding="utf-8"))
    assert found["additionalProperties"] is False
    assert set(found["properties"]) == set(Service.model_fields) - {"name", "folder"}
    assert set(found["required"]) == {"image", "processes"}
    assert found["properties"]["image"]["description"]
