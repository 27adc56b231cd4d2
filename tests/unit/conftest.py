"""What every unit test can rely on."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_second_set_of_lab_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs two rehearsals at once may have set it; tests say themselves where secrets are."""
    monkeypatch.delenv("MINIPC_LAB_SECRETS_DIR", raising=False)
