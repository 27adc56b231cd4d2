"""Render the files in `templates/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined

from minipc.core.paths import ROOT, cache_dir


@cache
def environment(folder: Path) -> Environment:
    """Return the Jinja2 environment for one folder of templates. An undefined variable is an error.

    A name with a folder in it (`k3s/registries.yaml.j2`) is a template of another component.
    """
    # Compiling all templates again takes a tenth of a converge that changes nothing.
    compiled = FileSystemBytecodeCache(str(cache_dir("jinja"))) if folder.is_relative_to(ROOT) else None
    return Environment(  # noqa: S701 - configuration files, not HTML
        loader=FileSystemLoader([folder, folder.parent]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=compiled,
    )
