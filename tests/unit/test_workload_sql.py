"""The rule for statements that meet a migration while they run."""

from __future__ import annotations

import re

import pytest

from minipc.paths import ROOT

SOURCES = sorted((ROOT / "workload/minipc_workload").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_statement_returns_whatever_columns_there_are(path):
    """A column that is added changes what a prepared `*` returns: PostgreSQL refuses it, and users see a 500."""
    assert not re.search(r"(SELECT|RETURNING)\s+(\w+\.)?\*", path.read_text())
