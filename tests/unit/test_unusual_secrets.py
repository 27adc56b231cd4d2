"""Unusual values of secrets: refused by name when they are set, or every program reads exactly the value.

All deploys run with the most unusual value that each rule accepts. Each file that gets one of these values is parsed as
its program parses it. A new file with a secret needs a parser here.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from minipc.config import load
from minipc.core import yaml_text
from minipc.core.errors import SecretError
from minipc.core.paths import ROOT
from minipc.pyinfra_ext import operations
from minipc.pyinfra_ext.operations.files import File, render
from minipc.secrets.catalogue import Entry, whole
from minipc.secrets.generate import new_value
from minipc.secrets.values import check_value
from minipc.services import images
from minipc.services.images import ServiceImage
from tests.unit.deploy_run import OFFSITE, run_deploys
from tests.unit.secrets_leaks import assert_silent

SHOP = {
    "image": "minipc.local/shop",
    "processes": {"web": {"port": 80}},
    "migrate": {
        "command": ["true"],
        "environment": {"OWNER_URL": "postgresql://{postgres.user}:{postgres.password}@h/d"},
    },
    "health": {"live": "/", "ready": "/"},
    "ingress": {
        "domains": ["shop.example.org"],
        "node_port": 30100,
        "authentication": {"basic": {"user": "friends"}},
    },
    "postgres": {"database": "shop"},
    "redis": {"kind": "queue"},
    "secrets": ["STRIPE_KEY"],
    "environment": {
        "DATABASE_URL": "postgresql://{postgres.user}:{postgres.password}@{postgres.host}:{postgres.port}/{postgres.database}",
        "REDIS_URL": "redis://{redis.user}:{redis.password}@{redis.host}:{redis.port}/0",
        "KEY": "{secret.STRIPE_KEY}",
    },
}
S3 = {"endpoint": "s3.example.org", "bucket": "minipc-backups", "region": "eu-1"}
EVERYTHING: dict[str, Any] = {
    "alertmanager_channels": [
        *({"name": kind, "kind": kind} for kind in ("slack", "webhook", "ntfy", "discord", "pushover")),
        {"name": "bot", "kind": "telegram", "chat_id": 1},
        {"name": "mail", "kind": "email", "server": "mail.example.org", "port": 587, "user": "u"}
        | {"sender": "a@example.org", "to": "b@example.org"},
    ],
    "alertmanager_watchdog": True,
    "dns_provider": "cloudflare",
    "dns_zone": "example.org",
    "dns_follow": True,
    "offsite_deploy_repository": True,
    "k3s_registries": [{"name": "ghcr", "host": "ghcr.io", "username": "you"}],
}
ODD = [
    f"hunter2{each}" for each in ("@", "/", "%", "#", "?", '"', "\\", " x", "ü", "\nx", "'", "$x", "{{x}}", ":", "`x`")
]
ODD += ["hunter2" + "x" * 66, " hunter2", "hunter2 +@all ~*", "-hunter2\n"]


def unusual(entry: Entry) -> str:
    """Return the most unusual value that the rule of a secret accepts, another one for each name."""
    text = {
        "password": f"-_.~{entry.name.replace('.', '~')}~".ljust(72, "."),
        "line": f"'#${{{{%@/?;=&<>`~: - {entry.name} *!|",
        "url": f"https://u:p@h.example:1/{entry.name}?a=%20&b=$c;{{{{d}}}}#'".rstrip("'"),
        "text": f"\"'\\ü☃ #{{{{%$(x)}} {entry.name}\n\n - : @/?`\t",
    }.get(entry.rule)
    value = text or new_value(entry.generate or "alphanumeric")
    check_value(entry.name, value, entry.rule)
    return value


# --- how a program reads its file -------------------------------------------------------------------------------------


def texts(found: Any) -> Iterator[str]:
    """Yield every text in a structure; what is base64, too, decoded; passwords of URLs alone."""
    if isinstance(found, dict):
        yield from (text for each in (*found.keys(), *found.values()) for text in texts(each))
    elif isinstance(found, list):
        yield from (text for each in found for text in texts(each))
    elif isinstance(found, str):
        yield found
        yield from in_url(found)
        with contextlib.suppress(ValueError):
            decoded = base64.b64decode(found, validate=True).decode()
            yield from (decoded, *in_url(decoded))


def in_url(text: str) -> list[str]:
    try:
        password = urlsplit(text.strip().removeprefix("rest:")).password
    except ValueError:
        return []
    return [unquote(password)] if password else []


def ini(text: str) -> list[str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=")
    parser.read_string(text)
    return [value for section in parser.values() for value in section.values()]


def acl(text: str) -> list[str]:
    """Return the passwords of Redis's users: a word that begins with >. Other words are rights."""
    lines = [line.split() for line in text.splitlines() if line]
    assert all(line[:2] == ["user", "default"] or re.match(r"on >\S+$", " ".join(line[2:4])) for line in lines)
    return [word[1:] for line in lines for word in line if word.startswith(">")]


PARSERS: dict[str, Callable[[str], list[str]]] = {
    r"/etc/redis/.*\.acl": acl,
    r"/etc/prometheus/minipc/.*\.env": lambda text: [
        word for line in text.splitlines() for word in shlex.split(line.partition("=")[2])
    ],
    r"/etc/pgbackrest/pgbackrest\.conf|/etc/minipc/vpn/wg0\.conf|/etc/minipc/backups/s3\.credentials": ini,
    r".*\.json": lambda text: list(texts(json.loads(text))),
    r".*\.ya?ml": lambda text: list(texts(list(yaml.safe_load_all(text)))),
    r"/etc/minipc/backups/restic\.repository": in_url,
    # A file that contains the value alone.
    r"/etc/minipc/(backups/restic\.password|offsite/host_key)|/etc/pgbackrest/sftp_key": lambda text: [text, text[:-1]],
    r"/etc/grafana/admin_password|/etc/(prometheus/minipc|minipc/watcher)/\w+\.password": lambda text: [text],
    # An ntfy server gets its template in the address.
    r"/etc/prometheus/minipc/\w+_(url|token|user_key|password)": lambda text: [text, text.partition("&tpl=")[0]],
    r"/etc/minipc/dns\.token|/etc/rancher/.*(token|password)": lambda text: [text, text[:-1]],
}
# Where the value itself is in no file of a machine.
ELSEWHERE = {
    r"release\.signing_key": "stays on the controller",
    r"argocd\..*": "objects in the cluster, as JSON; the password as a hash",
    r"offsite\.tls_key|watcher\.client_key": "as PEM",
    r"alertmanager\.password": "the off-site host has its own in the same place",
    r".*\.INGRESS_PASSWORD": "a hash",
    r"dns\.credentials": "of another provider",
    r"(watcher\.alive|alertmanager\.watchdog)_url": "with an off-site host, the watcher's own address",
    r"k3s\.agent_token": "on agents, and in the server's file",
}


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Yield the files of all machines by path, and the values of all secrets by name."""
    folder: Path = tmp_path_factory.mktemp("services")
    (folder / "shop.yaml").write_text(yaml_text.dump(SHOP))
    files: dict[str, str] = {}
    values: dict[str, str] = {}
    place = operations.place

    def noted(**what: Any) -> Any:
        for entry in what["entries"]:
            done = render(what["component"], entry, what.get("values") or {})
            if isinstance(done, File) and done.content is not None:
                files[done.path] = done.content.decode(errors="replace")
        return place(**what)

    def value_of(entry: Entry) -> str:
        return values.setdefault(entry.name, unusual(entry))

    image = ServiceImage("shop", "minipc.local/shop", "v2", "sha256:" + "ab" * 32, "v2", "00", ROOT / "README.md")
    settings = {**EVERYTHING, "services_folders": [str(folder)]}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(operations, "place", noted)
        monkeypatch.setattr(operations.machine_programs, "place", noted)
        monkeypatch.setattr(images, "current", lambda _: image)
        run_deploys(monkeypatch, "mini", value_of=value_of, **settings, offsite_kind="s3", offsite_s3=S3)
        for runtime in ("podman", "k3s"):
            more = {"services_runtime": runtime, "backups_offsite": OFFSITE}
            run_deploys(monkeypatch, "mini", value_of=value_of, **settings, **more)
        run_deploys(monkeypatch, "offsite", value_of=value_of, **settings)
    return files, values


def test_each_program_reads_exactly_the_value(placed):
    files, values = placed
    read: dict[str, list[str]] = {}
    for path, text in files.items():
        marks = {name for name in values if name in text or name.replace(".", "~") in text or values[name] in text}
        marks |= {"in base64"} if "kind: Secret" in text else set()
        if not marks or path.endswith((".service", ".socket", "Caddyfile")):
            continue
        parser = next((parse for pattern, parse in PARSERS.items() if re.fullmatch(pattern, path)), None)
        assert parser, f"{path} gets {', '.join(sorted(marks))}: add a parser"
        read[path] = parser(text)
    missing = [
        name
        for name, value in values.items()
        if not any(value in each for each in read.values())
        and not any(re.fullmatch(pattern, name) for pattern in ELSEWHERE)
    ]
    assert missing == []
    assert len(read) > 12


def test_a_service_gets_addresses_that_it_can_parse(placed):
    files, values = placed
    found = [
        text
        for path, content in files.items()
        if path.endswith("/shop/web.yaml")
        for text in PARSERS[r".*\.ya?ml"](content)
    ]
    for address, name in (("postgresql://", "postgres.password.shop"), ("redis://", "redis.password.shop")):
        (url,) = {each for each in found if each.startswith(address)}
        assert urlsplit(url).password == values[name]


def test_each_odd_value_of_a_password_is_refused_by_name():
    services = str(ROOT / "examples/parking/services")
    settings = EVERYTHING | {"dns_zone": "minipc.test", "services_folders": [services]}
    entries = whole(load("lab", host_operator_keys=[], **settings))
    passwords = [entry for entry in entries if entry.rule == "password"]
    assert len(passwords) > 12
    for entry in passwords:
        for value in ODD:
            with pytest.raises(SecretError, match=re.escape(entry.name)) as caught:
                check_value(entry.name, value, entry.rule)
            assert_silent(caught.value, "hunter2")
