"""The files that `minipc init` writes, and how it writes them again without losing edits."""

from __future__ import annotations

import difflib
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minipc.core import paths
from minipc.core.files import write_atomic

# Part of the example key in group_data/production.py.
EXAMPLE = "replace-with-your-public-key"
GROUP_DATA, INVENTORY = "group_data/production.py", "inventory/production.py"


@dataclass(frozen=True)
class Machine:
    """A machine as it was found.

    Attributes:
        networks: from which the operator connects.
    """

    address: str
    public_interface: str
    operator_interface: str
    networks: tuple[str, ...]


def inventory_text(mini: Machine, offsite: Machine | None, key: Path | None, *, hosts_repository: bool) -> str:
    """Return inventory/production.py.

    Args:
        key: private key without a passphrase; None: the SSH agent has it.
        hosts_repository: the off-site host also has the deploy repository.
    """
    of_key = f", key={_py(_short(key))}" if key else ""
    lines = [
        '"""Your machines, as `minipc init` found them. Edit what differs; init keeps your edits."""',
        "",
        f"from minipc.inventory import {'offsite_machine, ' if offsite else ''}refuse_empty_match, target",
        "",
        "# Those in `production` that keep backups. REQUIRED for a rebuild: without one no data outlives its machine.",
        'offsite: list[str] = ["offsite"]' if offsite else "offsite: list[str] = []",
        "",
        "# Those in `production` that are further machines of the cluster, for more pods: docs/reference/k3s_agent.md.",
        "k3s_agents: list[str] = []",
        "",
        "production = [",
        f'    target("minipc", address={_py(mini.address)}{of_key}),',
    ]
    if offsite:
        lines += [
            "    offsite_machine(",
            '        "offsite",',
            f"        address={_py(offsite.address)},",
            *([f"        key={_py(_short(key))},"] if key else []),
            f"        firewall_public_interfaces=[{_py(offsite.public_interface)}],",
            f"        firewall_operator_interfaces=[{_py(offsite.operator_interface)}],",
            "        # Where you connect from. If your own address changes, give your provider's network.",
            f"        firewall_operator_networks={_py(offsite.networks)},",
            *(["        offsite_deploy_repository=True,"] if hosts_repository else []),
            "    ),",
        ]
    lines += ["]", "", 'refuse_empty_match(production, "production")']
    return "\n".join(lines) + "\n"


def group_text(mini: Machine, public_key: str, more: dict[str, object]) -> str:
    """Return group_data/production.py.

    Args:
        more: further settings.
    """
    lines = [
        '"""Your settings, as `minipc init` found them. group_data/all.py has all others; init keeps your edits."""',
        "",
        "from minipc.vpn.peers import read_peers",
        "",
        'environment = "production"',
        "",
        "# Lines of your .pub files. They replace what is in root's authorized_keys.",
        f"host_operator_keys = [{_py(public_key)}]",
        "",
        "# `ip -br link` on the machine shows its interfaces.",
        f"firewall_public_interfaces = [{_py(mini.public_interface)}]",
        f"firewall_operator_interfaces = [{_py(mini.operator_interface)}]",
        "# Where you connect from.",
        f"firewall_operator_networks = {_py(mini.networks)}",
        "",
        "# Kept by `minipc vpn add NAME` and `minipc vpn revoke NAME` in inventory/vpn_peers.json.",
        "vpn_peers = read_peers()",
        "# SSH, the cluster's API and ArgoCD through the VPN only: docs/howto/vpn.md.",
        '# firewall_operator_access = "vpn"',
        "",
        *(f"{key} = {_py(value)}" for key, value in more.items()),
    ]
    return "\n".join(lines) + "\n"


def write(name: str, text: str) -> str:
    """Write a file of the repository, and return what became of it with the difference; empty if it is the same.

    A file that was edited since keeps its edits: what init would change is merged in (`git merge-file`). Where both
    changed the same lines, yours stay and the difference is shown.
    """
    path = paths.ROOT / name
    base = paths.state_dir("init") / path.parent.name
    now = path.read_text(encoding="utf-8") if path.exists() else ""
    if not now or EXAMPLE in (paths.ROOT / GROUP_DATA).read_text(encoding="utf-8"):
        merged = text
    elif base.exists():
        merged = _merged(now, base.read_text(encoding="utf-8"), text)
    else:
        merged = now
    if merged != now:
        write_atomic(path, merged.encode(), mode=0o644)
    write_atomic(base, text.encode())
    kept = _difference(merged, text, f"{name}, yours (kept)", "what init would write") if merged != text else ""
    changed = f"wrote {name}\n{_difference(now, merged, 'before', 'now')}" if merged != now else ""
    return "\n".join(filter(None, (changed, kept)))


def _merged(mine: str, base: str, new: str) -> str:
    with tempfile.TemporaryDirectory(prefix="minipc-init-") as folder:
        files = [Path(folder, name) for name in ("mine", "base", "new")]
        for file, content in zip(files, (mine, base, new), strict=True):
            file.write_text(content, encoding="utf-8")
        done = subprocess.run(
            ["git", "merge-file", "-p", "--ours", *map(str, files)], capture_output=True, text=True, check=True
        )
    return done.stdout


def _difference(before: str, after: str, name: str, other: str) -> str:
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), name, other, lineterm="", n=0))


def _short(path: Path) -> str:
    """Return a path below the home with ~."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _py(value: object) -> str:
    """Return a value as Python source, with double quotes, as everywhere in this repository."""
    text = isinstance(value, str | list | tuple)
    return json.dumps(value, ensure_ascii=False) if text else repr(value)
