"""How programs of `machine/` are installed: complete, and no more than each one imports."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from minipc.core.paths import ROOT
from minipc.pyinfra_ext.operations import machine_programs as programs

INSTALLED = [
    "backup",
    "bucket",
    "copy-sqlite",
    "disk-space",
    "drill",
    "failed",
    "gitops-drift",
    "load-queue",
    "loki-bound",
    "measure-services",
    "measure-volumes",
    "offsite-copy",
    "redis-alive",
    "replaced",
    "restore",
    "restore-state",
    "restore-volumes",
    "stanza",
    "storage-box",
    "wal-stream",
]


def entries(program):
    found = [*programs._modules([program]), *programs._launchers([program])]
    return {
        each.path.removeprefix(programs.FOLDER).lstrip("/"): each.content for each in found if hasattr(each, "content")
    }


def test_each_program_that_a_deploy_installs_is_known_here():
    sources = [(path, path.read_text()) for path in (ROOT / "deploys").glob("*.py")]
    named = set()
    for _, text in sources:
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "programs":
                named |= {
                    name for each in call.keywords if each.arg == "programs" for name in ast.literal_eval(each.value)
                }
    assert sorted(named) == INSTALLED


@pytest.mark.parametrize("program", INSTALLED)
def test_a_program_is_complete_with_the_modules_that_are_installed_for_it(program, tmp_path):
    for path, content in entries(program).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    # -S: not the package of this checkout. Without its last line the launcher only imports.
    launcher = (tmp_path / program).read_text().rpartition("program.start")[0]
    (tmp_path / "imports.py").write_text(f"{launcher}\nprint(program.__file__)")
    argv = [sys.executable, "-S", "-E", str(tmp_path / "imports.py")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_off_site_copy_does_not_depend_on_the_drill():
    assert "drill" not in programs.imported_modules("offsite_copy")
    assert "repositories" not in programs.imported_modules("offsite_copy")
    assert {"drill", "repositories", "program"} <= programs.imported_modules("drill")


@pytest.mark.parametrize("path", sorted((ROOT / "machine/minipc_machine").glob("*.py")), ids=lambda path: path.name)
def test_the_package_uses_the_standard_library_only(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= {"minipc_machine", *sys.stdlib_module_names}
