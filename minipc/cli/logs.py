"""The command `minipc logs`."""

from __future__ import annotations

import re
import time

import click

from minipc.cli.options import target_options
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError
from minipc.logs.asking import Answer, Question, ask
from minipc.logs.queries import saved_queries, saved_query

FOLLOW_EVERY_S = 2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """Return a time span such as `90s`, `15m`, `2h` or `7d` in seconds.

    Raises:
        ConfigError: the text is not a time span.
    """
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found:
        raise ConfigError(f"--since {text} is not a time span", "use a value such as 90s, 15m, 2h or 7d")
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("text", required=False)
@click.option(
    "--request-id", metavar="ID", help="Show all lines of one request; ID is the value of its header X-Request-ID."
)
@click.option("--service", metavar="NAME", help="Show one service, such as api, ingest, push, edge, postgres, ssh.")
@click.option("--level", type=click.Choice(["error", "warn", "info", "debug"]), help="Show one level.")
@click.option("--since", default="1h", show_default=True, help="Search this far back: 90s, 15m, 2h, 7d.")
@click.option(
    "--limit",
    type=click.IntRange(1, 5000),
    default=1000,
    show_default=True,
    help="Show the newest lines, at most this many.",
)
@click.option("--saved", metavar="NAME", help="Run a saved query (needs Loki).")
@click.option("--list", "list_", is_flag=True, help="List the saved queries.")
@click.option("--follow", is_flag=True, help="Keep showing new lines.")
@target_options
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
    environment: Environment,
) -> None:
    """Show log lines that contain TEXT, from Loki if it is available, else from the journal."""
    from minipc.config import load
    from minipc.remote.inventory import the_target

    services = load(environment.name).services.declared
    if list_:
        for query in saved_queries(services).values():
            click.echo(f"{query.name:18} {query.question}")
        return
    logql = saved_query(saved, services).filled(request_id) if saved else None
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
    """Print the answer; print its source to stderr, so that the lines can be piped."""
    for labels, value in answer.numbers:
        click.echo(f"{value:>8} {labels}")
    for entry in answer.entries:
        click.echo(str(entry))
    count = len(answer.entries) + len(answer.numbers)
    why = f": {answer.why_not_loki}" if answer.why_not_loki else ""
    click.echo(f"{count} from {answer.source}{why}", err=True)
