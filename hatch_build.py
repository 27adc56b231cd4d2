"""Build hook: store the commit in the wheel's metadata, where `minipc --version` finds it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Write `extra_metadata/commit` into wheels; a wheel built outside a checkout has none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file, unless this is an editable install: that one asks git."""
        if version == "editable":
            return
        git = ["git", "-C", self.root, "rev-parse", "HEAD"]
        found = subprocess.run(git, capture_output=True, text=True)
        if found.returncode == 0:
            self._directory = TemporaryDirectory()  # removed with the hook
            path = Path(self._directory.name, "commit")
            path.write_text(found.stdout, encoding="utf-8")
            build_data["extra_metadata"] = {str(path): "commit"}
