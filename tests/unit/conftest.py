"""What every unit test can rely on."""

from __future__ import annotations

import os

import pytest

# The tests are about the example, whatever services the user of this clone has.
os.environ["MINIPC_SERVICES"] = "examples/parking/services"


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> None:
    """What reaches the disk before the power fails cannot be seen by a test; thousands of files are written here."""
    os.fsync = lambda descriptor: None
    os.sync = lambda: None


@pytest.fixture(autouse=True)
def _no_second_set_of_lab_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs two rehearsals at once may have set it; tests say themselves where secrets are."""
    monkeypatch.delenv("MINIPC_LAB_SECRETS_DIR", raising=False)
