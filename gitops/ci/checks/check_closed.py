"""The tree is closed: what is built from it depends on nothing else, and is what was committed.

    python3 ci/checks/check_closed.py DIRECTORY

Refused are remote bases, anything that leaves the tree, links, submodules, generators and plugins, and files that
change how Git or ArgoCD reads the tree. minipc asks the same of each commit before it builds it, and this runs in CI,
so that such a commit is noticed when it is made. Exit codes: 0 closed, 1 not, 2 wrong usage.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
PLAIN, EXECUTABLE = "100644", "100755"
KINDS = {"120000": "a symbolic link", "160000": "a submodule"}
# Name of a file, in any folder -> why it is not allowed.
FORBIDDEN = {
    ".gitattributes": "Git may check out other content than was signed",
    ".gitmodules": "submodules come from elsewhere",
    ".argocd-source*": "ArgoCD takes other settings from it",
    "Chart.yaml": "ArgoCD would run Helm",
    "*.jsonnet": "ArgoCD would run it",
    "*.libsonnet": "ArgoCD would run it",
}
# What a kustomization may have. `True`: no path is in it. Else the fields of each entry, by the same rule; "path",
# "paths" and "pairs" (NAME=PATH) are names of files in the tree. Helm charts, generators, transformers, validators,
# OpenAPI schemas and the deprecated fields are not among them.
FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("apiVersion", "kind", "metadata", "namespace", "namePrefix", "nameSuffix"), True),
    **dict.fromkeys(("labels", "commonLabels", "commonAnnotations", "images", "replicas", "generatorOptions"), True),
    "sortOptions": True,
    "resources": "path",
    "components": "path",
    "patches": {"path": "path", "patch": True, "target": True, "options": True},
    "replacements": {"path": "path", "source": True, "targets": True},
    "configMapGenerator": {
        **dict.fromkeys(("name", "namespace", "behavior", "literals", "options"), True),
        "files": "pairs",
        "envs": "pairs",
    },
}
# A path below or beside; a URL, a host and a query have characters that are not in it.
PATH = re.compile(r"(\.\./)*[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?|\.\.(/\.\.)*/?")
# kustomize takes these for a repository even without a scheme.
REMOTE = re.compile(r"github\.com|_git|\.git(/|$)", re.IGNORECASE)


def problems(modes: Mapping[str, str], content: Mapping[str, bytes]) -> list[str]:
    """Say what is wrong with a tree, one sentence each.

    Args:
        modes: path -> Git's mode, such as 100644.
        content: path -> content of each plain file.
    """
    found = [f"{path}: {KINDS.get(mode, f'mode {mode}')} is not allowed" for path, mode in modes.items() if odd(mode)]
    for path, text in sorted(content.items()):
        name = posixpath.basename(path)
        found += [f"{path}: {why}" for pattern, why in FORBIDDEN.items() if fnmatch.fnmatchcase(name, pattern)]
        if name in KUSTOMIZATIONS:
            found += [f"{path}: {each}" for each in _kustomization(posixpath.dirname(path), text, content)]
        elif name.casefold() in {each.casefold() for each in KUSTOMIZATIONS}:
            found.append(f"{path}: write the name as one of {', '.join(KUSTOMIZATIONS)}")
    return found


def odd(mode: str) -> bool:
    """Return whether this is no plain file."""
    return mode not in (PLAIN, EXECUTABLE)


def _kustomization(directory: str, text: bytes, tree: Mapping[str, bytes]) -> Iterator[str]:
    try:
        special = (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken, yaml.DirectiveToken)
        if any(isinstance(token, special) for token in yaml.scan(text)):
            yield "anchors, aliases, tags and directives are not allowed"
            return
        data = yaml.load(text, Loader=_Strict)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        yield f"it cannot be read: {' '.join(str(error).split())}"
        return
    if not isinstance(data, dict):
        yield "it is no mapping"
        return
    yield from _fields(data, FIELDS, directory, tree, "")


def _fields(
    data: Any, allowed: Mapping[str, Any], directory: str, tree: Mapping[str, bytes], where: str
) -> Iterator[str]:
    if not isinstance(data, dict):
        yield f"{where.rstrip('.')} is no mapping"
        return
    for name, value in data.items():
        rule = allowed.get(name) if isinstance(name, str) else None
        if rule is None:
            yield f"the field {where}{name} is not allowed; allowed are {', '.join(sorted(allowed))}"
        elif isinstance(rule, str):
            entries = value if isinstance(value, list) else [value]
            for entry in entries:
                path = entry.rpartition("=")[2] if rule == "pairs" and isinstance(entry, str) else entry
                yield from _path(path, directory, tree, f"{where}{name}")
        elif rule is not True:
            for entry in value if isinstance(value, list) else [value]:
                yield from _fields(entry, rule, directory, tree, f"{where}{name}.")


def _path(path: Any, directory: str, tree: Mapping[str, bytes], where: str) -> Iterator[str]:
    if not isinstance(path, str) or not PATH.fullmatch(path) or REMOTE.search(path):
        yield f"{where} names {str(path)!r}, which is no plain path in this repository"
        return
    full = posixpath.normpath(posixpath.join(directory, path))
    folder = any(posixpath.join(full, name) in tree for name in KUSTOMIZATIONS)
    if full.startswith("..") or not (full in tree or folder):
        yield f"{where} names {path!r}, which is not in this repository"


class _Strict(yaml.SafeLoader):
    """A loader that refuses a key that is there twice: which one counts differs between programs."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(map(str, keys))) or "<<" in keys:
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(root: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the modes and the plain files below a directory, as `problems` takes them; links are not followed."""
    modes, content = {}, {}
    for folder, folders, files in os.walk(root):
        if ".git" in folders:
            folders.remove(".git")
        for name in [*files, *(each for each in folders if (Path(folder) / each).is_symlink())]:
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            modes[relative] = "120000" if path.is_symlink() else PLAIN
            if not path.is_symlink():
                content[relative] = path.read_bytes()
    return modes, content


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: check_closed.py DIRECTORY", file=sys.stderr)
        return 2
    modes, content = read(Path(sys.argv[1]))
    found = problems(modes, content)
    for each in found:
        print(each, file=sys.stderr)
    print(f"{len(modes)} files: {'not closed' if found else 'closed'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
