"""Read what our deploys declare, as plain data for the contestants: the same list of resources for all.

pyinfra does not tell which function an operation came from and with which arguments. So the benchmark wraps the public
functions in its own process, before the deploys are loaded (`bench/listen.py`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra import context
from pyinfra.api.state import State

from minipc.pyinfra_ext.operations import File
from minipc.pyinfra_ext.operations.files import Entry
from minipc.pyinfra_ext.progress import split_name

PACKAGES = "packages.packages_installed"
_MODULES = {"apt": "pyinfra.operations.apt", "server": "pyinfra.operations.server"}
_noted: dict[tuple[str, str], list[Operation]] = defaultdict(list)


@dataclass(frozen=True)
class Operation:
    """One operation of a deploy.

    Attributes:
        kind: module and function, such as `server.user`; empty for one that no contestant knows.
        arguments: by parameter name, without those left at their default.
    """

    component: str
    name: str
    kind: str
    arguments: dict[str, Any]

    @property
    def label(self) -> str:
        """`redis: Configure Redis`."""
        return f"{self.component}: {self.name}"


def listen(kinds: Iterable[str]) -> None:
    """Note every call of these operations from now on."""
    for kind in kinds:
        module_name, function = kind.split(".")
        module = importlib.import_module(_MODULES.get(module_name, f"minipc.pyinfra_ext.operations.{module_name}"))
        setattr(module, function, _noting(kind, getattr(module, function)))


def _noting(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def noting(*args: Any, name: str, **kwargs: Any) -> Any:
        component, short = split_name(f"{context.host.current_deploy_name} | {name}")
        own = {key: value for key, value in kwargs.items() if not key.startswith("_")}
        arguments = inspect.signature(original).bind(*args, **own).arguments
        _noted[component, short].append(Operation(component, short, kind, dict(arguments)))
        return original(*args, name=name, **kwargs)

    return noting


def declared(state: State) -> list[Operation]:
    """Return every operation of the run in the order in which it would be executed; once all deploys are loaded."""
    found = []
    for op_hash in state.get_op_order():
        component, name = split_name(", ".join(state.get_op_meta(op_hash).names))
        noted = _noted[component, name]
        found.append(noted.pop(0) if noted else Operation(component, name, "", {}))
    return found


def files_of(entries: Iterable[Entry]) -> list[File]:
    """Return the files among the entries."""
    return [entry for entry in entries if isinstance(entry, File)]


def content(file: File) -> bytes:
    """Return the content of the file, which `place` has rendered."""
    if file.content is None:
        raise ValueError(f"{file.path} was not rendered")
    return file.content


def packages(operations: Sequence[Operation]) -> list[str]:
    """All Debian packages, in order, each once."""
    wanted = [name for each in operations if each.kind == PACKAGES for name in each.arguments["packages"]]
    return list(dict.fromkeys(wanted))
