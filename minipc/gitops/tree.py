"""The files of a commit, read as they were committed: no attribute and no filter of Git takes part."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from minipc.core.errors import RefusedError
from minipc.core.paths import ROOT
from minipc.gitops import git

RULES = ROOT / "gitops/ci/checks/check_closed.py"
"""One set of rules, here and in the CI that users copy."""
MAX_FILES, MAX_BYTES = 5_000, 32 << 20
_SHOWN = 8

Files = dict[str, bytes]


@dataclass(frozen=True)
class Tree:
    """Attributes:
    modes: path -> Git's mode of each entry.
    files: path -> content of each plain file.
    """

    modes: Mapping[str, str]
    files: Files

    def problems(self) -> list[str]:
        """Say why it is not closed; empty when what is built from it depends on nothing else."""
        return _problems()(self.modes, self.files)

    def tar(self) -> bytes:
        """Return the plain files as a tar."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path, content in self.files.items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()


def read(directory: Path, commit: str) -> Tree:
    """Return the tree of a commit.

    Raises:
        RefusedError: it is too large to be looked at.
        MinipcError: git failed.
    """
    listed = git.run(directory, "ls-tree", "-r", "-z", "-l", "--full-tree", commit).split(b"\0")
    entries = [(line.partition(b"\t")[0].split(), line.partition(b"\t")[2]) for line in listed if line]
    if len(entries) > MAX_FILES or sum(int(size) for (_, _, _, size), _ in entries if size.isdigit()) > MAX_BYTES:
        raise RefusedError(
            f"commit {commit[:12]} has more than {MAX_FILES} files or {MAX_BYTES >> 20} MB",
            "remove everything but manifests from the deploy repository",
        )
    modes = {path.decode(errors="backslashreplace"): mode.decode() for (mode, *_), path in entries}
    blobs = [
        (path.decode(errors="backslashreplace"), hash_) for (_, kind, hash_, _), path in entries if kind == b"blob"
    ]
    wanted = b"".join(hash_ + b"\n" for _, hash_ in blobs)
    stream = io.BytesIO(git.run(directory, "cat-file", "--batch", stdin=wanted))
    files = {}
    for path, _ in blobs:
        size = int(stream.readline().split()[2])
        content = stream.read(size)
        stream.read(1)
        if modes[path] != "120000":
            files[path] = content
    return Tree(modes, files)


def demand_closed(tree: Tree, commit: str) -> None:
    """Raise RefusedError unless what is built from the tree depends on nothing else."""
    found = tree.problems()
    if found:
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        lines = "".join(f"\n  - {each}" for each in [*found[:_SHOWN], *more])
        raise RefusedError(
            f"commit {commit[:12]} is not built, because it refers to content outside the repository:{lines}",
            "copy that content into the deploy repository and commit it",
        )


def _problems() -> Callable[[Mapping[str, str], Mapping[str, bytes]], list[str]]:
    spec = importlib.util.spec_from_file_location("check_closed", RULES)
    if spec is None or spec.loader is None:
        raise ImportError(RULES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Callable[[Mapping[str, str], Mapping[str, bytes]], list[str]], module.problems)
