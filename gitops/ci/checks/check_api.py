"""The API keeps its shape: what a client relies on is still there, and nothing new is demanded of it.

    python3 ci/check_api.py openapi.json new.json

Both are OpenAPI documents; the first is the committed one. Additions are fine: commit them. Breaking are: a path,
method or answer that is gone; a parameter or field that is newly required, gone from an answer, or of another type or
narrower range. Exit codes: 0 nothing breaks, 1 something does, 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
# Limits of what a request may hold; a narrower one breaks.
LOWER, UPPER = (
    ("minimum", "minLength", "minItems", "exclusiveMinimum"),
    (
        "maximum",
        "maxLength",
        "maxItems",
        "exclusiveMaximum",
    ),
)

Document = dict[str, Any]


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        old, new = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:])
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    problems = list(breaks(old, new))
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems and old != new:
        print("nothing breaks; commit the new document, so that clients can rely on what was added")
    return 1 if problems else 0


def breaks(old: Document, new: Document) -> Iterator[str]:
    """What a client of the old API would trip over, one line each."""
    for path, operations in old.get("paths", {}).items():
        for method in METHODS:
            if method not in operations:
                continue
            name = f"{method.upper()} {path}"
            other = new.get("paths", {}).get(path, {}).get(method)
            if other is None:
                yield f"{name} is gone"
            else:
                yield from _operation(name, operations[method], other, old, new)


def _operation(name: str, old: Document, new: Document, old_root: Document, new_root: Document) -> Iterator[str]:
    before = {(each["in"], each["name"]): each for each in old.get("parameters", [])}
    for key, parameter in {(each["in"], each["name"]): each for each in new.get("parameters", [])}.items():
        where = f"{name}: the {key[0]} parameter {key[1]}"
        if parameter.get("required") and not before.get(key, {}).get("required"):
            yield f"{where} is newly required"
        if key in before:
            pair = before[key].get("schema", {}), parameter.get("schema", {})
            yield from _schema(where, *pair, old_root, new_root, request=True)
    if new.get("requestBody", {}).get("required") and not old.get("requestBody", {}).get("required"):
        yield f"{name}: the request body is newly required"
    yield from _contents(
        f"{name}: the request", old.get("requestBody"), new.get("requestBody"), old_root, new_root, True
    )
    for status, answer in old.get("responses", {}).items():
        if status not in new.get("responses", {}):
            yield f"{name}: the answer {status} is gone"
        else:
            other = new["responses"][status]
            yield from _contents(f"{name}: the answer {status}", answer, other, old_root, new_root, False)


def _contents(
    where: str, old: Document | None, new: Document | None, old_root: Document, new_root: Document, request: bool
) -> Iterator[str]:
    for kind, content in (old or {}).get("content", {}).items():
        other = (new or {}).get("content", {}).get(kind)
        if other is None:
            yield f"{where} is no longer {kind}"
        else:
            yield from _schema(
                where, content.get("schema", {}), other.get("schema", {}), old_root, new_root, request=request
            )


def _schema(
    where: str,
    old: Document,
    new: Document,
    old_root: Document,
    new_root: Document,
    *,
    request: bool,
    seen: frozenset[tuple[str, str]] = frozenset(),
) -> Iterator[str]:
    references = (old.get("$ref", ""), new.get("$ref", ""))
    if any(references) and references in seen:
        return  # a type that contains itself
    seen |= {references}
    old, new = _resolved(old, old_root), _resolved(new, new_root)
    if not old:
        return  # anything was allowed
    before, after = _types(old, old_root), _types(new, new_root)
    # A request may take more types than before, an answer may have fewer.
    lost = (before - after) if request else (after - before)
    if before and after and lost:
        yield f"{where} was {_words(before)}, is {_words(after)}"
        return
    yield from _range(where, old, new, request)
    fields, others = old.get("properties", {}), new.get("properties", {})
    if request:
        for field in sorted(set(new.get("required", [])) - set(old.get("required", []))):
            yield f"{where}: {field} is newly required"
        if new.get("additionalProperties") is False:
            yield from (f"{where}: {field} is refused now" for field in fields if field not in others)
    else:
        yield from (f"{where}: {field} is gone" for field in fields if field not in others)
        for field in sorted(set(old.get("required", [])) - set(new.get("required", []))):
            if field in others:
                yield f"{where}: {field} may be missing now"
    for field in fields:
        if field in others:
            yield from _schema(
                f"{where}: {field}", fields[field], others[field], old_root, new_root, request=request, seen=seen
            )
    if "items" in old and "items" in new:
        yield from _schema(f"{where}[]", old["items"], new["items"], old_root, new_root, request=request, seen=seen)


def _range(where: str, old: Document, new: Document, request: bool) -> Iterator[str]:
    if not request:
        return
    for key in (*LOWER, *UPPER):
        if key in new and (key not in old or (new[key] > old[key] if key in LOWER else new[key] < old[key])):
            yield f"{where}: {key} was {old.get(key, 'not limited')}, is {new[key]}"
    if new.get("pattern") not in (None, old.get("pattern")):
        yield f"{where}: must match {new['pattern']}, before {old.get('pattern', 'anything')}"
    gone = set(map(str, old.get("enum", []))) - set(map(str, new.get("enum", [])))
    if new.get("enum") and gone:
        yield f"{where}: no longer takes {', '.join(sorted(gone))}"


def _resolved(schema: Document, root: Document) -> Document:
    reference = schema.get("$ref")
    if not reference:
        return schema
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _types(schema: Document, root: Document) -> set[str]:
    """The types that a schema allows; empty when it allows any."""
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if alternatives:
        found = [_types(_resolved(each, root), root) for each in alternatives]
        return set().union(*found) if all(found) else set()
    kind = schema.get("type")
    return {kind} if isinstance(kind, str) else set(kind or [])


def _words(types: set[str]) -> str:
    return " or ".join(sorted(types))


if __name__ == "__main__":
    sys.exit(main())
