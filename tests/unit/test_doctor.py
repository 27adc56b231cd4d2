"""What `minipc doctor` calls wrong, and what is only still to be done."""

from __future__ import annotations

import pytest

from minipc.config.load import group_data
from minipc.core.errors import EXIT_FAIL, EXIT_PASS, ConfigError
from minipc.core.paths import ROOT
from playbooks import doctor

EXAMPLE = [f"ssh-ed25519 AAAA-{doctor.EXAMPLE} you@laptop"]


@pytest.fixture
def all_else_is_well(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIPC_AGE_KEY_FILE", str(tmp_path / "none"))
    for check in ("_programs", "_disk"):
        monkeypatch.setattr(doctor, check, lambda: doctor.Finding("x", "everything"))
    monkeypatch.setattr(doctor, "_not_in_the_cache", list)


@pytest.fixture
def keys(monkeypatch):
    """Sets the operator's keys of group_data/production.py."""
    return lambda found: monkeypatch.setattr(doctor, "_operator_keys", lambda: str(found))


@pytest.fixture
def inventory(monkeypatch):
    """Makes reading the inventory fail, or work."""

    def answer(error=None):
        def targets(environment):
            if error:
                raise error

        monkeypatch.setattr("playbooks.doctor.targets", targets)

    return answer


def test_a_fresh_clone_is_well_and_told_what_to_fill_in(all_else_is_well, keys, inventory, capsys):
    keys(EXAMPLE)
    inventory(ConfigError("host_operator_keys: not an SSH public key"))
    assert doctor.examine(lambda: None) == EXIT_PASS
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "configuration" in line]
    assert line.startswith("○")
    for name in doctor.TO_FILL_IN:
        assert name in line
        assert (ROOT / name).is_file()


def test_a_wrong_configuration_is_still_a_failure(all_else_is_well, keys, inventory, capsys):
    keys(["ssh-ed25519 AAAA me"])
    inventory(ConfigError("host_name: missing; it is REQUIRED"))
    assert doctor.examine(lambda: None) == EXIT_FAIL
    assert "host_name: missing" in capsys.readouterr().out


def test_a_filled_in_configuration_passes(all_else_is_well, keys, inventory, capsys):
    keys(["ssh-ed25519 AAAA me"])
    inventory()
    assert doctor.examine(lambda: None) == EXIT_PASS
    assert "○" not in capsys.readouterr().out


def test_another_prerequisite_is_not_forgiven(all_else_is_well, keys, inventory, monkeypatch):
    keys(EXAMPLE)
    inventory()
    monkeypatch.setattr(doctor, "_disk", lambda: doctor.Finding("disk", "the lab", "1 GB free"))
    assert doctor.examine(lambda: None) == EXIT_FAIL


def test_artifacts_that_are_missing_are_named_and_no_failure(all_else_is_well, keys, inventory, monkeypatch, capsys):
    keys(EXAMPLE)
    inventory()
    monkeypatch.setattr(doctor, "_not_in_the_cache", lambda: ["argocd-manifest", "loki"])
    assert doctor.examine(lambda: None) == EXIT_PASS
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "artifacts" in line]
    assert line.startswith("○")
    assert "argocd-manifest, loki" in line


def test_what_is_missing_is_looked_up_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIPC_CACHE_DIR", str(tmp_path))
    assert {"k3s", "k3s-images", "argocd-manifest", "argocd-images"} <= set(doctor._not_in_the_cache())


def test_a_broken_list_of_artifacts_is_a_failure(all_else_is_well, keys, inventory, monkeypatch):
    def broken():
        raise ConfigError("artifacts.toml can't be read")

    keys(EXAMPLE)
    inventory()
    monkeypatch.setattr(doctor, "_not_in_the_cache", broken)
    assert doctor.examine(lambda: None) == EXIT_FAIL


def test_the_example_is_recognised():
    """The file as it is shipped: a change of its example must change the constant."""
    assert doctor.EXAMPLE in str(group_data("production")["host_operator_keys"])
