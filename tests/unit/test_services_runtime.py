"""What a converge makes of service files: namespaces and policies in K3s, timers and ports under podman."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyinfra.api import Host

from minipc.config.services import conflicts, read
from minipc.core import yaml_text
from minipc.core.errors import SecretError
from minipc.core.paths import ROOT
from minipc.pyinfra_ext import deploying, operations
from minipc.pyinfra_ext.operations.files import File, render
from minipc.pyinfra_ext.operations.podman import UNITS
from minipc.services import archives, images, namespace
from minipc.services.calendar import calendar_events
from minipc.services.images import ServiceImage
from minipc.services.manifests import DRILL
from minipc.services.network import policies
from minipc.services.ports import data_ports, metrics_port, network_interface, redis_port
from tests.unit import deploy_run
from tests.unit.deploy_run import FACTS, run_deploys
from tests.unit.service_files import BOOKINGS, TINY, service, settings
from tests.unit.test_service_images import oci

Found = list[dict[str, Any]]


def named(found: Found, kind: str, name: str) -> dict[str, Any]:
    return next(each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name))


def policy(found: Found, name: str) -> dict[str, Any]:
    return dict(named(found, "NetworkPolicy", name)["spec"])


def bookings_policies() -> Found:
    bookings = service(BOOKINGS)
    return policies(bookings, settings(bookings))


def test_everything_is_denied_by_default() -> None:
    assert policy(bookings_policies(), "deny-by-default") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_pods_reach_their_own_data_and_what_is_listed() -> None:
    bookings = service(BOOKINGS)
    chosen = settings(bookings)
    egress = policy(policies(bookings, chosen), "service")["egress"]
    blocks = [each["to"][0]["ipBlock"] | {"ports": each["ports"]} for each in egress if "ipBlock" in each["to"][0]]
    data, internet = blocks
    assert data["cidr"] == f"{chosen.host.service_address}/32"
    assert [each["port"] for each in data["ports"]] == [5432], "no Redis, which the service does not have"
    assert internet["cidr"] == "0.0.0.0/0"
    assert {each["port"] for each in internet["ports"]} == {443}
    for address in ("10.42.0.9", "192.168.1.1", "172.20.0.1", "169.254.169.254", "100.64.0.1"):
        assert any(ip_address(address) in ip_network(each) for each in internet["except"]), address
    assert not any(ip_address("203.0.113.7") in ip_network(each) for each in internet["except"])


def test_the_machine_reaches_the_front_process_and_metrics_only() -> None:
    found = bookings_policies()
    web = policy(found, "from-the-machine-web")["ingress"][0]
    assert [each["port"] for each in web["ports"]] == [8000]
    names = {each["metadata"]["name"] for each in found}
    assert "from-the-machine-worker" not in names, "it has no port and no metrics"


def test_a_drill_reaches_the_scratch_server_and_nothing_of_the_service() -> None:
    bookings = service(BOOKINGS)
    chosen = settings(bookings)
    found = policies(bookings, chosen)
    assert policy(found, "service")["podSelector"]["matchExpressions"][0]["values"] == [DRILL]
    (allowed,) = policy(found, "drill")["egress"]
    assert [each["port"] for each in allowed["ports"]] == [chosen.backups.drill_port]


def test_a_namespace_has_limits_data_services_and_volumes() -> None:
    bookings = service(BOOKINGS)
    chosen = settings(bookings)
    found = namespace.objects(bookings, chosen)
    labels = named(found, "Namespace", "bookings")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert named(found, "EndpointSlice", "postgres-host")["endpoints"][0]["addresses"] == [chosen.host.service_address]
    assert not [each for each in found if each["metadata"]["name"] == "redis"]
    volume = named(found, "PersistentVolume", "bookings-uploads")["spec"]
    claim = named(found, "PersistentVolumeClaim", "uploads")["spec"]
    assert volume["local"]["path"] == "/srv/minipc/volumes/bookings/uploads"
    assert volume["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["claimRef"] == {"namespace": "bookings", "name": "uploads"}
    assert claim["volumeName"] == "bookings-uploads"
    assert namespace.objects(service(TINY), chosen)[0]["metadata"]["name"] == "tiny"


def test_ports_are_distinct() -> None:
    queue = {"redis": {"kind": "queue"}}
    metrics = {"processes": {"web": {"port": 8000, "metrics": {"port": 9000}}, "worker": {"metrics": {"port": 9000}}}}
    first, second = service(BOOKINGS, **metrics), service(TINY, name="zebra", **queue)
    third = service(TINY, name="apple", **queue)
    chosen = settings(first, second, third)
    services = chosen.services.declared
    assert [metrics_port(services, "bookings", each) for each in ("web", "worker")] == [9400, 9401]
    assert metrics_port([service(BOOKINGS)], "bookings", "web") == 30081, "its metrics are on the port of the ingress"
    assert (redis_port(chosen, third), redis_port(chosen, second)) == (6380, 6381)
    assert data_ports(chosen) == [5432, 6379, 6380, 6381, chosen.backups.drill_port]
    assert len(network_interface("a-very-long-name-of-a-service1")) <= 15


@pytest.mark.parametrize(
    ("schedule", "events"),
    [
        ("0 3 * * *", ["*-*-* 03:00:00 UTC"]),
        ("*/15 * * * *", ["*-*-* *:00,15,30,45:00 UTC"]),
        ("5 0-2,22 1 */6 *", ["*-01,07-01 00,01,02,22:05:00 UTC"]),
        ("0 9 * * 1-5", ["Mon,Tue,Wed,Thu,Fri *-*-* 09:00:00 UTC"]),
        ("0 9 * * 0,7", ["Sun *-*-* 09:00:00 UTC"]),
        ("0 9 1 * 1", ["Mon *-*-* 09:00:00 UTC", "*-*-01 09:00:00 UTC"]),
        ("50/5 * * * *", ["*-*-* *:50,55:00 UTC"]),
    ],
)
def test_a_cron_expression_becomes_calendar_events(schedule: str, events: list[str]) -> None:
    assert calendar_events(schedule) == events


def test_two_services_never_share_a_unit() -> None:
    first = service(TINY, name="a-b", processes={"c": {}})
    second = service(TINY, name="a", processes={"b-c": {}})
    assert conflicts([second, first]) == ["the unit minipc-a-b-c is claimed by 'a' and by 'a-b'"]


def image_of(name: str) -> ServiceImage:
    return ServiceImage(name, f"minipc.local/{name}", "v2", "sha256:" + "ab" * 32, "v2", "00", ROOT / "README.md")


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Run the deploys of a machine with the service BOOKINGS under podman; return what they place, by path."""
    file = {key: value for key, value in BOOKINGS.items() if key != "name"}
    (tmp_path / "bookings.yaml").write_text(yaml_text.dump(file))
    seen: dict[str, str] = {}
    place = operations.place

    def noted(**what: Any) -> Any:
        if what["component"] == "services":
            for entry in what["entries"]:
                done = render("services", entry, what.get("values") or {})
                if isinstance(done, File) and done.content is not None:
                    seen[done.path] = done.content.decode()
        return place(**what)

    monkeypatch.setattr(operations, "place", noted)
    monkeypatch.setattr(images, "current", image_of)
    done = run_deploys(monkeypatch, services_folders=[str(tmp_path)])
    steps = [name for component, name in done.operations if component == "services"]
    assert steps.index("Migrate the database of bookings") < steps.index("Configure web of bookings"), (
        "a failed migration leaves the version before"
    )
    return seen


@pytest.mark.parametrize("runtime", ["podman", "k3s"])
def test_a_declared_secret_that_is_not_set_stops_before_the_first_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, runtime: str
) -> None:
    """pyinfra changes nothing before all deploys are prepared, and this one never is."""
    (tmp_path / "bookings.yaml").write_text(
        yaml_text.dump({key: value for key, value in BOOKINGS.items() if key != "name"})
    )
    prepare = deploy_run._prepared

    def without_the_key(*arguments: Any, **more: Any) -> Any:
        state = prepare(*arguments, **more)
        given = deploying.load

        def load(environment: str, names: Iterable[str], *rest: Any, **options: Any) -> Any:
            wanted = list(names)
            if "bookings.STRIPE_KEY" in wanted:
                raise SecretError("a secret is missing: bookings.STRIPE_KEY", "`minipc secrets set`")
            return given(environment, wanted, *rest, **options)

        monkeypatch.setattr(deploying, "load", load)
        return state

    monkeypatch.setattr(deploy_run, "_prepared", without_the_key)
    with pytest.raises(SystemExit) as stopped:
        run_deploys(monkeypatch, services_folders=[str(tmp_path)], services_runtime=runtime)
    assert stopped.value.code == SecretError.exit_code
    assert "bookings.STRIPE_KEY" in caplog.text


@pytest.mark.parametrize(
    ("runtime", "from_backup", "added", "expected"),
    [
        ("podman", "restore", False, "released"),
        ("podman", "restore", True, "released"),  # what was added later was never released
        ("podman", "refuse", True, "added"),  # a converge releases it
        ("podman", "refuse", False, "released"),  # another controller, without a cache
        ("k3s", "restore", False, "released"),
        ("k3s", "refuse", True, "released"),
    ],
)
def test_an_image_that_only_the_machine_has_is_taken_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str, from_backup: str, added: bool, expected: str
) -> None:
    """A rebuild with an empty cache: the archive came from the backup. It is never replaced by a newer image."""
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "bookings.yaml").write_text(
        yaml_text.dump({key: value for key, value in BOOKINGS.items() if key != "name"})
    )
    (declared,) = read([str(tmp_path)])
    user = str(declared.user)
    known = {
        "released": oci(tmp_path / "released.tar", f"{declared.image}:v1", user=user),
        "added": oci(tmp_path / "added.tar", f"{declared.image}:v2", user=f"{user}:{user}"),
    }
    digests = {name: archives.read(path).digest for name, path in known.items()}
    asked: list[str] = []

    def get_file(_: Host, path: str, into: str) -> bool:
        asked.append(path)
        shutil.copy(known["released"], into)
        return True

    if added:
        images.receive(declared, Path(shutil.copy(known["added"], tmp_path / "copy.tar")), digests["added"])
    monkeypatch.setattr(Host, "get_file", get_file)
    monkeypatch.setitem(FACTS, "ReleasedImages", {"bookings": digests["released"]})
    pushed: list[str] = []
    push = operations.push

    def noted(**what: Any) -> Any:
        pushed.append(what["artifact"].version)
        return push(**what)

    monkeypatch.setattr(operations, "push", noted)
    settings = {"services_runtime": runtime, "postgres_from_backup": from_backup}
    done = run_deploys(monkeypatch, services_folders=[str(tmp_path)], **settings)
    assert {"v1", "v2"} & set(pushed) == {"v1" if expected == "released" else "v2"}
    assert asked == ([f"{images.ON_MACHINE}/bookings/{digests['released'][7:]}.tar"] if expected == "released" else [])
    if runtime == "podman":
        assert ("services", "Start web of bookings") in done.operations


def test_podman_gets_a_unit_for_each_part(placed: dict[str, str]) -> None:
    quadlet = placed["/etc/containers/systemd/minipc-bookings-web.kube"]
    assert "Yaml=/etc/minipc/services/bookings/web.yaml" in quadlet
    assert "Network=minipc-bookings.network:alias=web" in quadlet
    assert "podman start --attach minipc-bookings-migrate-migrate" in placed[f"{UNITS}/minipc-bookings-migrate.service"]
    assert "OnCalendar=*-*-* 03:00:00 UTC" in placed[f"{UNITS}/minipc-bookings-nightly.timer"]
    secret, pod = yaml.safe_load_all(placed["/etc/minipc/services/bookings/web.yaml"])
    assert secret["kind"] == "Secret"
    assert pod["spec"]["containers"][0]["image"] == "localhost/minipc/bookings:" + "ab" * 6
    assert not [path for path in placed if "worker" in path and path.endswith(".service")]


def test_units_and_calendar_events_are_valid(placed: dict[str, str], tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("NOT EXERCISED: no systemd-analyze here")
    units = {path: text for path, text in placed.items() if path.startswith(UNITS) and "bookings" in path}
    assert len(units) == 3
    for path, text in units.items():
        # podman is on the machine, not here.
        (tmp_path / Path(path).name).write_text(text.replace("/usr/bin/podman", "/bin/true"))
    files = [str(tmp_path / Path(path).name) for path in units]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line] == []
