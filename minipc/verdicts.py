"""The three verdicts, the outcome of one check, and the words and signs they are shown with.

A sign and a word stand beside every colour, so nothing is said by colour alone.
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
    """A verdict or outcome as it reads in a table: `could-not-verify` becomes `could not verify`."""
    return verdict.replace("-", " ")
