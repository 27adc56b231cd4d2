"""A service that is removed: what a converge leaves of it, what a sync removes, and how its data is deleted."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minipc.core import yaml_text
from minipc.core.environment import LAB
from minipc.core.errors import RefusedError
from minipc.pyinfra_ext import operations
from minipc.pyinfra_ext.operations.files import File, render
from playbooks import backup, service_remove
from tests.unit.deploy_run import FACTS, OFFSITE, run_deploys
from tests.unit.service_files import BOOKINGS, settings
from tests.unit.test_services_runtime import image_of

GONE = BOOKINGS | {"name": "vanish", "redis": {"kind": "queue"}, "postgres": {"database": "vanish"}}
GONE |= {"ingress": {"domains": ["vanish.example"], "node_port": 30082}}
# What an operation removes by its name, not `place`: see `parts_removed`, `queues_removed` and `namespaces_removed`.
REMOVED = (
    r"/etc/containers/systemd/minipc-vanish(-web|-worker)?\.(kube|network)",
    r"/etc/systemd/system/minipc-vanish-(migrate|nightly)\.(service|timer)",
    r"/etc/minipc/services/vanish(/\w+\.yaml)?",
    r"/etc/minipc/backups/drill/vanish\.yaml",
    r"/etc/redis/(redis-)?queue-vanish\.(conf|acl)",
    r"/var/lib/redis-queues/vanish",  # its data
)


@pytest.mark.parametrize(
    ("role", "more"),
    [
        ("mini", {"services_runtime": "podman", "backups_offsite": OFFSITE}),
        ("mini", {"services_runtime": "k3s", "backups_offsite": OFFSITE}),
        ("offsite", {}),
    ],
    ids=["podman", "k3s", "offsite"],
)
def test_no_file_names_a_service_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, role: Any, more: dict[str, Any]
) -> None:
    """Every file is placed again without it, or an operation removes it by its name."""
    seen: dict[str, str] = {}
    for module in (operations, operations.machine_programs):
        place = module.place

        def noted(place: Any = place, **what: Any) -> Any:
            for entry in what["entries"]:
                done = render(what["component"], entry, what.get("values") or {})
                content = done.content if isinstance(done, File) else None
                seen[done.path] = (content or b"").decode(errors="replace")
            return place(**what)

        monkeypatch.setattr(module, "place", noted)
    monkeypatch.setattr("minipc.services.images.current", image_of)
    both = tmp_path / "both"
    both.mkdir()
    for content in (BOOKINGS, GONE):
        text = yaml_text.dump({key: value for key, value in content.items() if key != "name"})
        (both / f"{content['name']}.yaml").write_text(text)
    run_deploys(monkeypatch, role, services_folders=[str(both)], **more)
    naming = {path for path, text in seen.items() if "vanish" in path + text}
    assert naming, "the test sees what is placed"
    (both / "vanish.yaml").unlink()
    seen.clear()
    run_deploys(monkeypatch, role, services_folders=[str(both)], **more)
    assert not [path for path, text in seen.items() if "vanish" in path + text]
    left = naming - set(seen)
    assert [path for path in left if not any(re.fullmatch(each, path) for each in REMOVED)] == []


def test_data_of_a_service_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "minipc.pyinfra_ext.deploying.write_event", lambda event: said.append(getattr(event, "what", ""))
    )
    found = [("database", "vanish"), ("database", "bookings"), ("volumes", "vanish"), ("volumes", "bookings")]
    monkeypatch.setitem(FACTS, "DataOfServices", found)
    (tmp_path / "bookings.yaml").write_text(
        yaml_text.dump({key: value for key, value in BOOKINGS.items() if key != "name"})
    )
    run_deploys(monkeypatch, services_folders=[str(tmp_path)])
    named = [each for each in said if "no service file declares" in each]
    assert named == [f"{kind} vanish, which no service file declares" for kind in ("database", "volumes")]


# --- minipc service remove -------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with the data of the service `old-shop`. Returns what was run there."""
    ran: list[str] = []

    def on(target: Any, command: str, stdin: str = "", timeout_s: float = 60) -> str:
        ran.append(f"{command} {stdin}")
        if command.startswith("du "):
            return "12K\t/srv/minipc/volumes/old-shop"
        return '["old_shop", "old_shop_owner"]' if "json_agg" in stdin else ""

    values = settings(*[]).model_copy(update={"backups": settings().backups.model_copy(update={"offsite": "off"})})
    target = SimpleNamespace(alias="mini", settings=values)
    monkeypatch.setattr(service_remove, "the_target", lambda *_: target)
    monkeypatch.setattr(service_remove, "on", on)
    monkeypatch.setattr(service_remove, "query", lambda *_: "postgres\nminipc\nold_shop\n")
    monkeypatch.setattr(backup, "now", lambda *_: ran.append("backup") or 0)
    return ran


def remove(name: str = "old-shop", typed: str = "", *, delete: bool = True) -> int:
    return service_remove.remove(LAB, None, name, None, delete=delete, ask=lambda: typed)


def test_data_is_shown_and_kept(machine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert remove(delete=False) == 0
    said = capsys.readouterr().out
    assert "database old_shop, roles old_shop, old_shop_owner" in said
    assert "/srv/minipc/volumes/old-shop 12K" in said
    assert not [each for each in machine if "rm -rf" in each or "DROP" in each or each == "backup"]


def test_another_name_deletes_nothing(machine: list[str]) -> None:
    with pytest.raises(RefusedError, match="another name was typed"):
        remove(typed="old_shop")
    assert not [each for each in machine if "rm -rf" in each or "DROP" in each or each == "backup"]


def test_a_backup_comes_first(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert remove(typed="old-shop") == 0
    database, files, drop, delete = machine[-4:]
    assert database == "backup"
    assert "--tag removed:old-shop /srv/minipc/volumes/old-shop" in files
    assert "name=old_shop" in drop
    assert "roles=old_shop,old_shop_owner" in drop
    assert "rm -rf -- /srv/minipc/volumes/old-shop /var/lib/minipc/volumes/old-shop" in delete
    monkeypatch.setattr(backup, "now", lambda *_: 1)
    machine.clear()
    assert remove(typed="old-shop") == 1
    assert not [each for each in machine if "rm -rf" in each or "DROP" in each]


def test_a_service_that_is_declared_is_refused(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.service_files import service

    declared = settings(service(BOOKINGS))
    monkeypatch.setattr(service_remove, "the_target", lambda *_: SimpleNamespace(alias="mini", settings=declared))
    for name in ("bookings", "book-ings"):
        database = "bookings" if name == "book-ings" else None
        with pytest.raises(RefusedError, match="bookings is declared"):
            service_remove.remove(LAB, None, name, database, delete=True, ask=lambda: "bookings")
    assert machine == []
