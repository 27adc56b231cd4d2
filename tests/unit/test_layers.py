"""Import rules that import-linter cannot check: deploys, inventories and templates are files, not packages."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from minipc.cli.main import COMMANDS
from minipc.core.paths import ROOT

# The lab's own inventory lists its machines.
FILES = sorted(
    path
    for folder in ("deploys", "group_data", "inventory", "templates")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "inventory/lab.py"
)


def imported(path: Path) -> set[str]:
    """Return the top-level package of every import in a file, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", [*FILES, ROOT / "config.py"], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_that_pyinfra_reads_imports_neither_rehearsal_nor_playbooks(path):
    assert imported(path).isdisjoint({"rehearsal", "playbooks", "tests", "bench"})


def test_only_the_table_of_commands_names_the_rehearsal():
    """Modules that are loaded by name are invisible to import-linter: the names are in one table and in `doctor`."""
    allowed = {"minipc/cli/main.py", "minipc/cli/setup.py"}
    for folder in ("minipc", "playbooks"):
        for path in (ROOT / folder).rglob("*.py"):
            if str(path.relative_to(ROOT)) not in allowed:
                assert not re.search(r'"rehearsal(\.|:[a-z])', path.read_text(encoding="utf-8")), path


def test_the_rehearsal_is_loaded_for_its_own_commands_only():
    by_module = {where.partition(":")[0] for commands in COMMANDS.values() for where, _ in commands.values()}
    assert {module for module in by_module if module.startswith("rehearsal")} == {"rehearsal.cli", "rehearsal.lab.cli"}
    assert set(COMMANDS["Rehearsals"]) == {
        name for commands in COMMANDS.values() for name, (where, _) in commands.items() if where.startswith("rehearsal")
    }


def test_every_package_is_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(contracts["root_packages"]) >= packages - {"bench"}


def test_programs_for_the_machines_use_the_standard_library_only():
    for path in (ROOT / "machine/minipc_machine").rglob("*.py"):
        assert imported(path) <= sys.stdlib_module_names | {"minipc_machine"}, path


@pytest.mark.parametrize("folder", ["minipc", "playbooks", "deploys", "tests/verify"])
def test_nothing_compares_the_name_of_an_environment(folder):
    """What differs is an attribute of `minipc.core.environment.Environment`."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and "environment" in ast.unparse(node):
                values = [each.value for each in (node.left, *node.comparators) if isinstance(each, ast.Constant)]
                assert not {"lab", "production"} & set(values), f"{path}: {ast.unparse(node)}"


PRODUCT = ["minipc", "playbooks", "deploys", "templates", "machine", "rehearsal", "tests/verify", "gitops"]
CHOSEN_IN = "group_data/lab.py"


@pytest.mark.parametrize("example", ["parking", "parkday", "django"])
def test_no_product_code_knows_an_example(example):
    """An example is a service like any other. Only the lab's settings choose one for an empty `services/`."""
    word = re.compile(rf"\b({example}|outing|minipc_workload)\b")
    files = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in (ROOT / "group_data").glob("*.py") if str(path.relative_to(ROOT)) != CHOSEN_IN]
    texts = {path: path.read_bytes().decode(errors="ignore") for path in files if "__pycache__" not in path.parts}
    assert len(texts) > 300
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if word.search(text)] == []
