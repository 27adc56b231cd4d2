"""What a desired state amounts to: its objects, built on the machine by the kustomize that kubectl has in it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence

import yaml

from minipc.gitops.cluster import KUBECTL, Cluster, Object

# The tree is unpacked where nobody else reads, and removed again.
BUILD = """\
set -eu
umask 077
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
tar -x -C "$tree"
{kubectl} kustomize "$tree"/{path}
"""


def render(cluster: Cluster, tree: bytes, path: str) -> list[Object]:
    """The objects of a kustomization.

    Args:
        tree: a tar of the deploy repository.
        path: of the overlay in it.

    Raises:
        CouldNotVerifyError: it can't be built; the reason is kustomize's own.
    """
    script = BUILD.format(kubectl=KUBECTL, path=shlex.quote(path))
    text = cluster.run(f"bash -c {shlex.quote(script)}", stdin=tree, timeout_s=120)
    return [each for each in yaml.safe_load_all(text) if each]


def difference(
    before: Sequence[Object], after: Sequence[Object], names: tuple[str, str] = ("released", "pending")
) -> str:
    """A unified diff by object, empty when they are the same; `names` are what the two sides are called."""
    old, new = _by_name(before), _by_name(after)
    return "".join(
        line
        for name in sorted({*old, *new})
        for line in difflib.unified_diff(
            old.get(name, "").splitlines(keepends=True),
            new.get(name, "").splitlines(keepends=True),
            f"{names[0]}: {name}",
            f"{names[1]}: {name}",
        )
    )


def _by_name(objects: Sequence[Object]) -> dict[str, str]:
    return {f"{each['kind']} {each['metadata']['name']}": yaml.safe_dump(each, sort_keys=True) for each in objects}
