"""Install programs of `machine/minipc_machine` on a machine.

A program is a module with a function `main(arguments)`. The machine gets that module, the modules of the package that
it imports, and a launcher at the path where units and people call it. Modules that the program does not import are not
part of the operation, so a change of the restore drill does not restart the watcher. See docs/decisions/0030.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import minipc_machine
from minipc.pyinfra_ext.operations.files import Content, Directory, Entry, File, Placed, place

FOLDER = "/usr/local/lib/minipc"
PACKAGE = "minipc_machine"
SOURCE = Path(minipc_machine.__file__).parent
# No bytecode is written: units may not write here, and a leftover could hide a newer module.
LAUNCHER = """\
#!/usr/bin/python3
# Written by minipc. The program is minipc_machine/{module}.py in this folder.
import sys

sys.dont_write_bytecode = True

from minipc_machine import {module}, program

program.start({module}.main)
"""


def programs(
    name: str,
    component: str,
    programs: Sequence[str],
    entries: Sequence[Entry] = (),
    values: Mapping[str, Any] | None = None,
) -> Placed:
    """Install programs together with the files that belong to them, in one `place`.

    Args:
        programs: names of the launchers, such as "restore-state" for the module `restore_state`.
        entries: settings and units, placed with the programs.
        values: values for the templates among the entries.
    """
    return place(
        name=name, component=component, entries=[*_modules(programs), *entries, *_launchers(programs)], values=values
    )


def shell_program(source: str, path: str) -> File:
    """Return the entry that places a shell program of the package, checked by `sh -n`."""
    return Content((SOURCE / "shell" / source).read_bytes(), path, mode="755", check="sh -n {path}")


def _modules(programs: Sequence[str]) -> list[Entry]:
    modules = sorted({each for program in programs for each in imported_modules(_module(program))})
    return [
        Directory(FOLDER),
        Directory(f"{FOLDER}/{PACKAGE}"),
        *(Content((SOURCE / f"{each}.py").read_bytes(), f"{FOLDER}/{PACKAGE}/{each}.py") for each in modules),
    ]


def _launchers(programs: Sequence[str]) -> list[Entry]:
    return [
        Content(LAUNCHER.format(module=_module(program)).encode(), f"{FOLDER}/{program}", mode="755")
        for program in programs
    ]


def _module(program: str) -> str:
    return program.replace("-", "_")


@functools.cache
def imported_modules(module: str) -> frozenset[str]:
    """Return the modules of the package that a program needs: itself, and all that it imports, directly or not."""
    found: set[str] = set()
    pending = {"__init__", "program", module}
    while pending:
        current = pending.pop()
        found.add(current)
        pending |= _direct_imports(current) - found
    return frozenset(found)


def _direct_imports(module: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names |= {f"{PACKAGE}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
