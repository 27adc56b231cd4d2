"""How files below `templates/` are rendered."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined

from minipc.paths import ROOT, cache_dir


@cache
def environment(folder: Path) -> Environment:
    """The templates in a folder: an undefined variable is an error, not an empty text."""
    # Compiling all of them anew takes a tenth of a converge that changes nothing.
    compiled = FileSystemBytecodeCache(str(cache_dir("jinja"))) if folder.is_relative_to(ROOT) else None
    return Environment(  # noqa: S701 - configuration files, not HTML
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=compiled,
    )
