"""The machine says what runs on it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime


def test_the_release_says_what_runs_here(sh):
    release = json.loads(sh("cat /etc/minipc/release"))
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", release["commit"])
    assert isinstance(release["dirty"], bool)
    assert datetime.fromisoformat(release["converged_at"]) < datetime.now(UTC)
    assert release["versions"]["openssh-server"]
