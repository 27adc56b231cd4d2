"""`minipc logs`."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from minipc.errors import ConfigError
from minipc.logs.asking import Answer, Question, ask
from minipc.logs.queries import saved_queries, saved_query

FOLLOW_EVERY_S = 2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """`90s`, `15m`, `2h`, `7d` in seconds.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found:
        raise ConfigError(f"--since {text}: not a time", "such as 90s, 15m, 2h or 7d")
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("text", required=False)
@click.option("--request-id", metavar="ID", help="Everything about one request: the answer's X-Request-ID.")
@click.option("--service", metavar="NAME", help="Such as api, ingest, push, edge, postgres, ssh.")
@click.option("--level", type=click.Choice(["error", "warn", "info", "debug"]))
@click.option("--since", default="1h", show_default=True, help="How far back: 90s, 15m, 2h, 7d.")
@click.option("--limit", type=click.IntRange(1, 5000), default=1000, show_default=True, help="Lines, the newest.")
@click.option("--saved", metavar="NAME", help="A saved query, answered by Loki.")
@click.option("--list", "list_", is_flag=True, help="Show the saved queries.")
@click.option("--follow", is_flag=True, help="Go on with what is logged from now on.")
@click.option("--host", "alias", help="Which machine, when the inventory has several.")
@click.option(
    "--inventory", "environment", type=click.Choice(["production", "lab"]), default="production", show_default=True
)
def logs(
    text: str | None,
    request_id: str | None,
    service: str | None,
    level: str | None,
    since: str,
    limit: int,
    saved: str | None,
    list_: bool,
    follow: bool,
    alias: str | None,
    environment: Any,
) -> None:
    """Show what was logged, from Loki where it is, else from the journal; says which."""
    from minipc.inventory import the_target

    if list_:
        for query in saved_queries().values():
            click.echo(f"{query.name:18} {query.question}")
        return
    logql = saved_query(saved).filled(request_id) if saved else None
    question = Question(request_id, service, level, text, seconds(since), limit, logql=logql)
    target = the_target(environment, alias)
    answer = ask(target, question)
    show(answer)
    while follow:
        time.sleep(FOLLOW_EVERY_S)
        last = answer.entries[-1].at_ns if answer.entries else question.after_ns or time.time_ns() - 10**9
        question = Question(request_id, service, level, text, 0, limit, after_ns=last + 1, logql=logql)
        answer = ask(target, question)
        for entry in answer.entries:
            click.echo(str(entry))


def show(answer: Answer) -> None:
    """Prints it; where it comes from goes to stderr, so that the lines can be piped."""
    for labels, value in answer.numbers:
        click.echo(f"{value:>8} {labels}")
    for entry in answer.entries:
        click.echo(str(entry))
    count = len(answer.entries) + len(answer.numbers)
    why = f": {answer.why_not_loki}" if answer.why_not_loki else ""
    click.echo(f"{count} from {answer.source}{why}", err=True)
