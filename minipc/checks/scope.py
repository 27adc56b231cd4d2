"""Confine PromQL from a service's own files to that service: every selector gets the label `service`.

The files belong to the user, so this protects against mistakes: another service may use the same metric names.
"""

from __future__ import annotations

import re

# Words that stand alone and are not metrics; other functions are followed by a parenthesis.
_KEYWORDS = frozenset(
    {"sum", "min", "max", "avg", "group", "stddev", "stdvar", "count", "count_values", "bottomk", "topk", "quantile"}
    | {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"}
    | {"inf", "nan", "start", "end", "atan2"}
)
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
    |(?P<labels>\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\))
    |(?P<range>\[[^\]]*\])
    |(?P<number>\b\d[0-9a-zA-Z_.]*)
    |(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?P<space>\s*)(?P<next>[({]?)
    |(?P<brace>\{)""",
    re.VERBOSE,
)
_MATCHER = re.compile(r"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')\s*,?")


def scoped(expression: str, service: str) -> str:
    """Return the expression with the matcher service="NAME" in every selector.

    Args:
        service: name of the service.

    Raises:
        ValueError: a selector has no metric name, names another service, or cannot be read.
    """
    found, at = [], 0
    while match := _TOKEN.search(expression, at):
        found.append(expression[at : match.start()])
        at = match.end()
        if match["brace"]:
            raise ValueError(f"a selector without a metric name: {expression[match.start() :][:60]!r}")
        if not match["name"] or match["next"] == "(" or match["name"].lower() in _KEYWORDS:
            # A function keeps its parenthesis; so does a keyword.
            found.append(match[0])
        elif match["next"] == "{":
            labels, at = _labels(expression, at, service)
            found.append(f"{match['name']}{{{labels}}}")
        else:
            found.append(f'{match["name"]}{{service="{service}"}}{match["space"]}')
    return "".join(found) + expression[at:]


def _labels(expression: str, at: int, service: str) -> tuple[str, int]:
    """Return the matchers of a selector with the service's, and the position after its closing brace."""
    matchers = [f'service="{service}"']
    while match := _MATCHER.match(expression, at):
        at = match.end()
        name, operator, value = match.groups()
        if name == "service" and (operator, value[1:-1]) != ("=", service):
            raise ValueError(f"service{operator}{value}: a rule of {service} asks about {service} only")
        if name == "__name__":
            raise ValueError("__name__: name the metric before the brace")
        if name != "service":
            matchers.append(f"{name}{operator}{value}")
    end = re.match(r"\s*\}", expression[at:])
    if not end:
        raise ValueError(f"the selector cannot be read: {expression[at:][:60]!r}")
    return ",".join(matchers), at + end.end()
