"""Print the digest that Alertmanager sends once a week: the alert Digest (templates/backups/rules.yml.j2)."""

from __future__ import annotations

import json

import click

from minipc.core.environment import Environment
from minipc.core.errors import CouldNotVerifyError
from minipc.core.formatting import one_line
from minipc.core.ports import MONITORING
from minipc.remote.inventory import the_target
from minipc.remote.queries import on

ASK = f"curl -sS --fail --noproxy '*' --max-time 10 http://127.0.0.1:{MONITORING['prometheus']}/api/v1/alerts"


def digest(environment: Environment, alias: str | None = None) -> None:
    """Print the digest. Raise CouldNotVerifyError if Prometheus does not answer, or has not evaluated it yet."""
    click.echo(text_of(on(the_target(environment, alias), ASK)))


def text_of(answer: str) -> str:
    """Return the text of the digest from Prometheus' list of alerts."""
    alerts = json.loads(answer)["data"]["alerts"]
    texts = [each["annotations"]["meaning"] for each in alerts if each["labels"]["alertname"] == "Digest"]
    if not texts:
        raise CouldNotVerifyError("Prometheus has no digest", "minipc apply prometheus; then wait a minute")
    return "\n".join(map(one_line, texts[0].splitlines()))
