"""Check of the file that names the commit and versions on the machine."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime


def test_the_release_says_what_runs_here(sh):
    """The machine has a record of the commit and versions it runs."""
    release = json.loads(sh("cat /etc/minipc/release"))
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", release["commit"])
    assert isinstance(release["dirty"], bool)
    assert datetime.fromisoformat(release["converged_at"]) < datetime.now(UTC)
    assert release["versions"]["openssh-server"]
