"""How much memory each unit, pod and container of a machine uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minipc.config.service import Service
from minipc.core.formatting import one_line

# Each process's share of memory (PSS: what several share is divided among them), with its group. The files of pods are
# NAMESPACE_POD_UID; podman knows its containers.
SCRIPT = r"""
export LC_ALL=C.UTF-8
for process in /proc/[0-9]*; do
    # One group with cgroups of version 2; one for each controller with version 1, of which systemd's names the unit.
    group=$(awk -F : '($1 == 0 || $2 == "name=systemd") && length($3) > length(best) {best = $3} END {print best}' \
        $process/cgroup)
    kb=$(awk '/^Pss:/ {print $2}' $process/smaps_rollup) || continue
    [ -z "$kb" ] || echo "memory ${group:-/} $kb"
done 2>/dev/null
for pod in /var/log/pods/*_*_*; do [ -d "$pod" ] && echo "pod ${pod##*/}"; done
[ ! -x /usr/bin/podman ] || podman ps --no-trunc --format 'container {{.ID}} {{.Names}}' 2>/dev/null
true
"""


@dataclass(frozen=True, order=True)
class Used:
    """Memory of a unit, pod or container, bytes; `service` is empty for the platform's own."""

    name: str
    service: str
    memory: int


def read(printed: str, services: Sequence[Service]) -> list[Used]:
    """Parse the output of SCRIPT; return what uses memory, the most first."""
    groups: dict[str, int] = {}
    names: dict[str, str] = {}
    for line in printed.splitlines():
        match line.split(" "):
            case ["memory", *group, kilobytes] if kilobytes.isdigit():
                path = " ".join(group)
                groups[path] = groups.get(path, 0) + int(kilobytes) * 1024
            case ["pod", folder] if folder.count("_") == 2:
                namespace, pod, uid = folder.split("_")
                # In the name of a cgroup the dashes of the UID are underscores.
                names[uid.replace("-", "_")] = names[uid] = f"{namespace}/{pod}"
            case ["container", identifier, name]:
                names[identifier] = name
    used: dict[str, int] = {}
    for path, memory in groups.items():
        name = _name(path, names)
        used[name] = used.get(name, 0) + memory
    found = [Used(one_line(name), _service(name, services), memory) for name, memory in used.items()]
    return sorted(found, key=lambda each: -each.memory)


def _name(path: str, names: dict[str, str]) -> str:
    """Return the pod, container or unit of a cgroup."""
    for identifier, name in names.items():
        if identifier in path:
            return name
    units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
    if not units:
        return path.strip("/").split("/")[-1] or "outside of all units"
    return units[0]


def _service(name: str, services: Sequence[Service]) -> str:
    # The longest name first: "shop-two" is not a part of "shop".
    for each in sorted((service.name for service in services), key=len, reverse=True):
        if name.startswith((f"{each}/", f"minipc-{each}-")) or name == f"redis-server@queue-{each}.service":
            return each
    return ""
