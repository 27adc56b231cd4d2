"""What a desired state amounts to: its objects, built on the machine by the kustomize that kubectl has in it.

The tree comes from a repository that other people may be able to write. It is looked at before it is built, and it is
built by a user who has no rights, without a network, in a unit that sees nothing of the machine's own data.
"""

from __future__ import annotations

import difflib
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from minipc.core.errors import CouldNotVerifyError, RefusedError
from minipc.core.formatting import count, plain
from minipc.core.yaml_text import DUMPER, LOADER
from minipc.gitops.cluster import KUBECTL, Cluster, Object
from minipc.gitops.policy import CLUSTER_WIDE, RIGHTS
from minipc.gitops.tree import Files, Tree, demand_closed

# Of systemd.exec(5) and systemd.resource-control(5).
SANDBOX = {
    "DynamicUser": "yes",
    "PrivateNetwork": "yes",
    "RestrictAddressFamilies": "AF_UNIX",
    "IPAddressDeny": "any",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectProc": "invisible",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "@system-service",
    "InaccessiblePaths": "-/etc/minipc -/etc/rancher -/var/lib/rancher/k3s/server -/var/lib/postgresql",
    "MemoryMax": "512M",
    "TasksMax": "128",
    "RuntimeMaxSec": "90",
    "UMask": "0077",
}
# No kubeconfig: what is built needs no cluster. HOME: where k3s unpacks itself if it cannot read root's copy.
BUILD = """\
set -eu
export HOME=/tmp KUBECONFIG=/dev/null
mkdir /tmp/tree
tar -x --no-same-owner -C /tmp/tree
{kubectl} kustomize /tmp/tree/{path}
"""
KUSTOMIZATION = "kustomization.yaml"
MAX_BYTES = 32 << 20


def render(cluster: Cluster, tree: Tree, path: str, commit: str) -> list[Object]:
    """Return the objects of a folder of the deploy repository: of a kustomization, or of all its YAML files.

    Args:
        tree: the files of the commit.
        path: of the folder.
        commit: whose tree it is, for messages.

    Raises:
        RefusedError: it would not depend on the tree alone. Nothing was built.
        CouldNotVerifyError: it can't be built; the reason is kustomize's own.
    """
    files = _with_kustomization(tree.files, path)
    demand_closed(Tree(tree.modes, files), commit)
    if _is_empty(tree.files, path):
        return []
    script = BUILD.format(kubectl=KUBECTL, path=shlex.quote(path))
    options = [word for name, value in SANDBOX.items() for word in ("-p", f"{name}={value}")]
    unit = shlex.join(["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *options, "sh", "-c", script])
    text = cluster.run(unit, stdin=Tree({}, files).tar(), timeout_s=120)
    if len(text) > MAX_BYTES:
        raise RefusedError(
            f"the manifests of commit {commit[:12]} are larger than {MAX_BYTES >> 20} MB", "make them smaller"
        )
    try:
        return [each for each in yaml.load_all(text, Loader=LOADER) if each]
    except yaml.YAMLError as error:
        raise CouldNotVerifyError(
            f"{path} of {commit[:12]}: the output of kustomize cannot be parsed: {error}"
        ) from None


def _with_kustomization(files: Files, path: str) -> Files:
    """Add a kustomization to a folder that has none: ArgoCD reads such a folder as a list of files."""
    if any(posixpath.join(path, name) in files for name in (KUSTOMIZATION, "kustomization.yml", "Kustomization")):
        return files
    return files | {posixpath.join(path, KUSTOMIZATION): yaml.safe_dump({"resources": _names(files, path)}).encode()}


def _names(files: Files, path: str) -> list[str]:
    """Return the names of the manifests in a folder."""
    return [
        posixpath.basename(each)
        for each in sorted(files)
        if posixpath.dirname(each) == path and each.endswith((".yaml", ".yml", ".json"))
    ]


def _is_empty(files: Files, path: str) -> bool:
    """Return whether a folder exists and has no manifest: the root application of a machine without services."""
    return any(posixpath.dirname(each) == path for each in files) and not _names(files, path)


@dataclass(frozen=True)
class Change:
    """What differs between two states, by object; what gives rights comes last, where a reader who scrolls ends up.

    No text in it can steer a terminal: YAML escapes what is not ASCII, and `plain` takes out what is left.

    Attributes:
        objects: name of each object that differs -> its unified diff.
    """

    objects: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.objects)

    def __str__(self) -> str:
        return "".join(self.objects.values())

    @property
    def summary(self) -> list[str]:
        """One line for each object: however long the diff is, this is read."""
        return [_line(name, text) for name, text in self.objects.items()]


def difference(
    before: Sequence[Object], after: Sequence[Object], names: tuple[str, str] = ("released", "pending")
) -> Change:
    """Compare two lists of objects; `names` are what the two sides are called."""
    old, new = _by_name(before), _by_name(after)
    found = {}
    for name in sorted({*old, *new}, key=lambda name: (_gives_rights(name), name)):
        one, other = old.get(name, ""), new.get(name, "")
        if one != other:
            labels = (f"{names[0]}: {name}", f"{names[1]}: {name}")
            found[name] = "".join(difflib.unified_diff(one.splitlines(True), other.splitlines(True), *labels))
    return Change(found)


def _line(name: str, text: str) -> str:
    signs = [line[:1] for line in text.splitlines()[2:]]
    mark = "  <- gives rights" if _gives_rights(name) else ""
    return f"{name}: {count(signs.count('+'), 'line')} added, {signs.count('-')} removed{mark}"


def _by_name(objects: Sequence[Object]) -> dict[str, str]:
    """Each object as text; all those that share a name here are under it, so that none hides another."""
    found: dict[str, str] = {}
    for each in objects:
        found[_name(each)] = found.get(_name(each), "") + yaml.dump(each, Dumper=DUMPER, sort_keys=True)
    return found


def _name(each: Object) -> str:
    meta = each.get("metadata") or {}
    where = f" in {meta['namespace']}" if meta.get("namespace") else ""
    return plain(f"{each.get('kind')} {meta.get('name')}{where}")


def _gives_rights(name: str) -> bool:
    return name.split()[0] in CLUSTER_WIDE | RIGHTS
