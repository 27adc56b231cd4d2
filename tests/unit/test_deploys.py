"""The layout's promises: one word names a component everywhere, and every list of components follows the one list."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import pyinfra
import pytest

from minipc.config import load
from minipc.config.components import BY_NAME, COMPONENTS, deploy_files, missing_needs, recorded_packages, select
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT
from minipc.pyinfra_ext import operations
from playbooks import phases
from tests.unit.deploy_run import LAN, OFFSITE, order_of_all, run_deploys


def _calls(name: str) -> list[ast.Call]:
    tree = ast.parse((ROOT / BY_NAME[name].deploy).read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _pattern(source: ast.expr) -> str:
    """A file's name; what a deploy fills into it can be anything."""
    parts = source.values if isinstance(source, ast.JoinedStr) else [source]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)


def test_site_includes_every_component_in_order():
    included = re.findall(r'local\.include\("(.+)"\)', (ROOT / "deploys/site.py").read_text())
    assert included == [component.deploy for component in COMPONENTS]


def test_the_off_site_host_is_ready_before_the_mini_pc_looks_for_its_backup(monkeypatch):
    settings = {"mini": load("lab", backups_offsite=OFFSITE), OFFSITE: load("lab")}
    components = list(dict.fromkeys(component for component, _ in order_of_all(monkeypatch, settings)))
    assert components.index("offsite") < components.index("repositories") < components.index("postgres")


@pytest.mark.parametrize(
    ("lists", "role"), [(["lab"], "mini"), (["lab", "offsite"], "offsite"), (["lab", "k3s_agents"], "agent")]
)
def test_site_has_for_each_role_what_belongs_there(lists, role, monkeypatch):
    included: list[str] = []
    monkeypatch.setattr(pyinfra, "host", SimpleNamespace(groups=lists))
    monkeypatch.setattr(pyinfra, "local", SimpleNamespace(include=included.append), raising=False)
    monkeypatch.setattr("minipc.pyinfra_ext.operations.k3s.server_first", lambda: None)
    runpy.run_path(str(ROOT / "deploys/site.py"))
    assert included == [component.deploy for component in COMPONENTS if role in component.roles]


@pytest.mark.parametrize("role", ["mini", "offsite", "agent"])
def test_a_deploy_run_without_limit_changes_nothing_on_a_machine_that_it_is_not_for(role, monkeypatch):
    """Else the mini PC's VPN key would get onto the off-site machine."""
    found = run_deploys(monkeypatch, role, foreign=True)
    there = {component for component, _ in found.operations}
    assert there
    assert there <= {component.name for component in COMPONENTS if role in component.roles}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_component_has_its_rooms(name):
    component = BY_NAME[name]
    for path in (component.deploy, component.verify, f"docs/reference/{name}.md"):
        assert (ROOT / path).is_file(), f"{path} is missing"


def test_no_room_without_a_component():
    deploys = {path.stem for path in (ROOT / "deploys").glob("*.py")} - {"site"}
    checks = {path.stem.removeprefix("test_") for path in (ROOT / "tests/verify").glob("test_*.py")}
    assert deploys == checks == set(BY_NAME)


def test_no_folder_of_templates_without_a_component():
    not_of_one_component = {"report", "runbook", "shared"}
    assert {path.name for path in (ROOT / "templates").iterdir()} - not_of_one_component <= set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_component_speaks_and_places_in_its_own_name(name):
    calls = _calls(name)
    named = {ast.unparse(keyword.value) for call in calls for keyword in call.keywords if keyword.arg == "component"}
    named |= {ast.unparse(call.args[2]) for call in calls if ast.unparse(call.func) == "not_exercised"}
    assert named <= {repr(name)}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_component_places_the_files_of_its_folder_and_no_other(name):
    folder = ROOT / "templates" / name
    there = {path.name: path.read_text() for path in folder.glob("*")}
    assert not [path for path in folder.glob("*") if path.is_symlink()]
    sources = [call.args[0] for call in _calls(name) if ast.unparse(call.func) in {"File", "SecretFile"}]
    patterns = [_pattern(source) for source in sources if ast.unparse(source) != "''"]
    for pattern in patterns:
        where = folder.parent if "/" in pattern else folder
        assert list(where.glob(pattern)), f"templates/{name}/{pattern} is missing"
    # Prometheus finds these by their names.
    used = [*patterns, "rules.yml.j2", "scrape.yml.j2", "services.yml.j2", "outside.yml.j2", "received.yml.j2"]
    included = [found for text in there.values() for found in re.findall(r'{% include "(.+?)" %}', text)]
    used += [each.removeprefix(f"{name}/") for each in included]
    assert [file for file in there if not any(fnmatch(file, pattern) for pattern in used)] == []


def test_the_phases_of_components_exist():
    named = {phase for component in COMPONENTS for phase in component.phases}
    assert named <= {phase.name for phase in phases.PHASES}


def test_needs_come_before():
    seen: set[str] = set()
    for component in COMPONENTS:
        assert set(component.needs) <= seen
        seen.add(component.name)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_operation_is_named_and_every_deploy_is_guarded(name):
    """An operation without a name prints its arguments; a deploy without config() could hit the wrong machine."""
    known = _operations(name)
    operations = [call for call in _calls(name) if ast.unparse(call.func).split(".")[0] in known]
    assert operations
    for call in operations:
        assert any(keyword.arg == "name" for keyword in call.keywords), ast.unparse(call)
    assert any(ast.unparse(call.func) == "config" for call in _calls(name))


def test_operations_are_found_at_all():
    assert {"git", "server", "install", "place", "unit"} <= _operations("offsite")
    assert {"objects_present", "once", "secret_present"} <= _operations("argocd")


def _operations(name: str) -> set[str]:
    """What a deploy imports of pyinfra's operations and ours: modules of operations, operations, what makes some."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / BY_NAME[name].deploy).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and "operations" in node.module.split("."):
            module = importlib.import_module(node.module)
            imported = {alias.name: getattr(module, alias.name) for alias in node.names}
            found |= {each for each, thing in imported.items() if _makes_operations(thing)}
    return found


def _makes_operations(thing: object) -> bool:
    ours = inspect.isfunction(thing) and "name" in inspect.signature(thing).parameters
    return inspect.ismodule(thing) or hasattr(thing, "_inner") or ours


S3 = {"endpoint": "s3.example.org", "bucket": "minipc-backups", "region": "eu-1"}
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b"
SFTP = {"host": "box.example.org", "port": 23, "user": "u1", "path": "/home/minipc", "host_keys": [HOST_KEY]}
MACHINES = {
    "under podman": ("mini", {"services_runtime": "podman", "backups_offsite": OFFSITE}),
    "in K3s": ("mini", {"services_runtime": "k3s", "backups_offsite": OFFSITE}),
    "with a bucket": ("mini", {"backups_offsite": None, "offsite_kind": "s3", "offsite_s3": S3}),
    "with a storage box": ("mini", {"backups_offsite": None, "offsite_kind": "sftp", "offsite_sftp": SFTP}),
    "alone": ("mini", {"backups_offsite": None}),
    "off-site": ("offsite", {"offsite_deploy_repository": True}),
    "agent": ("agent", {"services_runtime": "k3s", "k3s_server": "mini", "k3s_node_ip": "10.77.0.11"}),
}


@pytest.mark.parametrize(("role", "settings"), MACHINES.values(), ids=MACHINES)
def test_a_machine_gets_its_components_in_order_and_no_operation_twice(monkeypatch, role, settings):
    operations = run_deploys(monkeypatch, role, **settings).operations
    places = [list(BY_NAME).index(component) for component, _ in operations]
    assert places == sorted(places)
    assert len(set(operations)) == len(operations)


def test_k3s_is_configured_the_same_whichever_way_the_converge_comes_in(monkeypatch):
    """Another list of names in the API's certificate would restart it each time the way changes."""
    place, seen = operations.place, []

    def noted(**what):
        seen.extend([what["values"]["names"]] if (what["component"], what["name"]) == ("k3s", "Configure K3s") else [])
        return place(**what)

    monkeypatch.setattr(operations, "place", noted)
    for way in (LAN, "10.98.0.1"):
        run_deploys(monkeypatch, ssh_hostname=way, services_runtime="k3s", vpn_network="10.98.0.0/24")
    beside, through = seen
    assert beside == through
    assert {LAN, "10.98.0.1"} <= set(beside)


def test_a_converge_loads_only_the_clients_it_needs():
    """None for HTTP or Vault: they cost a tenth of a second."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "deploys").glob("*.py")]
    modules = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = sorted(module for module in modules if module and module.startswith("minipc"))
    code = f"import importlib, sys\nfor name in {ours}: importlib.import_module(name)\n"
    code += "print(*sorted({'httpx', 'hvac', 'requests'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# Installed, but nobody asks which version it was.
BESIDES = {"ca-certificates", "curl", "dbus", "git", "iproute2", "ipset", "iptables", "kmod", "promtool", "rsync"}
BESIDES |= {
    "aardvark-dns",
    "catatonit",
    "crun",
    "netavark",
    "openssh-client",
    "openssl",
    "python3",
    "sudo",
    "syslog-ng-mod-http",
    "unattended-upgrades",
}


def test_the_release_writes_down_what_is_installed(monkeypatch):
    done = [run_deploys(monkeypatch, role, **settings) for role, settings in MACHINES.values()]
    written = set(recorded_packages())
    installed = {package for each in done for package in each.packages}
    assert written - installed == {"systemd"}
    assert installed - written == BESIDES, "add it to `versions_of` of its component, or here"


def test_what_must_be_there_already_is_known_by_its_marker():
    markers = missing_needs(["redis", "services"])
    assert set(markers.values()) == {("host", "redis"), ("postgres", "services")}
    assert missing_needs(["host", "firewall", "edge"]) == {}
    assert missing_needs([]) == {}


@pytest.mark.parametrize("name", [need for component in COMPONENTS for need in component.needs])
def test_whatever_is_needed_has_a_marker(name):
    """Or nobody could say that it has to come first."""
    assert BY_NAME[name].marker_path.startswith("/"), f"set `marker_path` of {name} in minipc/config/components.py"


def test_an_unknown_component_gets_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean `redis`"):
        select(["reddis"])


def test_a_component_of_the_other_machine_is_refused():
    with pytest.raises(ConfigError, match="does not belong on a machine with the role offsite"):
        select(["postgres"], "offsite")
    assert [component.name for component in select([], "offsite")] == [
        "host",
        "firewall",
        "offsite",
        "alertmanager",
        "watcher",
        "release",
    ]
    assert [component.name for component in select([], "agent")] == [
        "host",
        "firewall",
        "images",
        "k3s_agent",
        "release",
    ]
    assert not {"offsite", "k3s_agent"} & {component.name for component in select([])}


def test_the_order_is_ours_not_the_callers():
    assert [component.name for component in select(["redis", "host"])] == ["host", "redis"]
    assert deploy_files(["redis"]) == [str(ROOT / "deploys/redis.py"), str(ROOT / "deploys/release.py")]
    assert deploy_files() == [str(ROOT / "deploys/site.py")]


def test_nothing_in_the_library_imports_deploys_or_tests():
    for path in (ROOT / "minipc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in {"deploys", "tests"}], path


def test_no_package_registry_is_named():
    hosts = [".".join(parts) for parts in (("deb", "debian", "org"), ("pypi", "org"), ("files", "pythonhosted", "org"))]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, tracked):
        path = ROOT / name.decode()
        text = path.read_bytes() if path.is_file() else b""
        assert not [host for host in hosts if host.encode() in text], path
