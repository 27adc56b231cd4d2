"""What `minipc doctor` calls wrong, and what is only still to be done."""

from __future__ import annotations

import pytest

from minipc import doctor
from minipc.config.load import group_data
from minipc.errors import EXIT_FAIL, EXIT_PASS, ConfigError
from minipc.paths import ROOT

EXAMPLE = [f"ssh-ed25519 AAAA-{doctor.EXAMPLE} you@laptop"]


@pytest.fixture
def all_else_is_well(monkeypatch):
    for check in ("_programs", "_disk"):
        monkeypatch.setattr(doctor, check, lambda: doctor.Finding("x", "everything"))
    monkeypatch.setattr(doctor, "_lab", lambda install: doctor.Finding("lab", "rehearse"))


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

        monkeypatch.setattr("minipc.inventory.targets", targets)

    return answer


def test_a_fresh_clone_is_well_and_told_what_to_fill_in(all_else_is_well, keys, inventory, capsys):
    keys(EXAMPLE)
    inventory(ConfigError("host_operator_keys: not an SSH public key"))
    assert doctor.examine(install=False) == EXIT_PASS
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "configuration" in line]
    assert line.startswith("○")
    for name in doctor.TO_FILL_IN:
        assert name in line
        assert (ROOT / name).is_file()


def test_a_wrong_configuration_is_still_a_failure(all_else_is_well, keys, inventory, capsys):
    keys(["ssh-ed25519 AAAA me"])
    inventory(ConfigError("edge_domain: missing; it is REQUIRED"))
    assert doctor.examine(install=False) == EXIT_FAIL
    assert "edge_domain: missing" in capsys.readouterr().out


def test_a_filled_in_configuration_passes(all_else_is_well, keys, inventory, capsys):
    keys(["ssh-ed25519 AAAA me"])
    inventory()
    assert doctor.examine(install=False) == EXIT_PASS
    assert "○" not in capsys.readouterr().out


def test_another_prerequisite_is_not_forgiven(all_else_is_well, keys, inventory, monkeypatch):
    keys(EXAMPLE)
    inventory()
    monkeypatch.setattr(doctor, "_disk", lambda: doctor.Finding("disk", "the lab", "1 GB free"))
    assert doctor.examine(install=False) == EXIT_FAIL


def test_the_example_is_recognised():
    """The file as it is shipped: whoever changes its example changes the constant."""
    assert doctor.EXAMPLE in str(group_data("production")["host_operator_keys"])
