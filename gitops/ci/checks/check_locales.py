"""Every language says everything: the same keys, the same placeholders, no empty text.

    python3 ci/check_locales.py locales [--reference en]

One JSON file for each language, nested objects or flat. Exit codes: 0 complete, 1 something is missing, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

PLACEHOLDER = re.compile(r"\{[^{}]*\}|%\(\w+\)[sd]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--reference", default="en", help="the language that the others must follow")
    arguments = parser.parse_args()
    files = sorted(arguments.directory.glob("*.json"))
    reference = arguments.directory / f"{arguments.reference}.json"
    if reference not in files:
        print(f"{reference} is not there", file=sys.stderr)
        return 2
    try:
        texts = {path.stem: flat(json.loads(path.read_text(encoding="utf-8"))) for path in files}
    except ValueError as error:
        print(f"not valid JSON: {error}", file=sys.stderr)
        return 2
    problems = compare(texts, arguments.reference)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(texts)} languages, {len(texts[arguments.reference])} texts, {len(problems)} problems")
    return 1 if problems else 0


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return `{"a": {"b": "text"}}` as `{"a.b": "text"}`."""
    if not isinstance(value, dict):
        return {prefix: str(value)}
    found: dict[str, str] = {}
    for key, each in value.items():
        found |= flat(each, f"{prefix}.{key}" if prefix else key)
    return found


def compare(texts: dict[str, dict[str, str]], reference: str) -> list[str]:
    """Return what is wrong, one line each."""
    wanted = texts[reference]
    problems = []
    for language, given in texts.items():
        problems += [f"{language}: {key} is missing" for key in wanted.keys() - given.keys()]
        problems += [f"{language}: {key} is not in {reference}" for key in given.keys() - wanted.keys()]
        problems += [f"{language}: {key} is empty" for key, text in given.items() if not text.strip()]
        for key in wanted.keys() & given.keys():
            want, have = (sorted(PLACEHOLDER.findall(text)) for text in (wanted[key], given[key]))
            if want != have:
                problems.append(f"{language}: {key} has the placeholders {have}, {reference} has {want}")
    return sorted(problems)


if __name__ == "__main__":
    sys.exit(main())
