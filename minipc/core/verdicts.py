"""The three verdicts, the outcome of a check, and their words and signs.

Every colour has a sign and a word, so that no information depends on colour alone.
"""

from __future__ import annotations

from typing import Literal

Verdict = Literal["pass", "fail", "could-not-verify"]
Outcome = Literal["passed", "failed", "not-exercised"]

SIGNS: dict[str, str] = {
    "pass": "✓",
    "passed": "✓",
    "fail": "✗",
    "failed": "✗",
    "could-not-verify": "?",
    "not-exercised": "○",
}


def words(verdict: str) -> str:
    """Return a verdict or outcome as shown in a table: `could-not-verify` becomes `could not verify`."""
    return verdict.replace("-", " ")
