"""Render the runbook: the phases of a rebuild with the commands to type, and the results of past runs.

    minipc runbook --write

It is rendered from `playbooks/phases.py` and the records, so it cannot disagree with either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import jinja2

from minipc.core.formatting import duration, one_line
from minipc.core.paths import ROOT
from minipc.core.verdicts import SIGNS, words
from minipc.evidence import records
from playbooks.phases import PHASES

FILE = ROOT / "docs" / "runbook.md"
KINDS = ("rehearsal", "rebuild", "drill")
_ENTRY = re.compile(r"^\| \d{4}-\d\d-\d\d .* \| `(\S+)` \|$", re.M)
_MARKDOWN, _ESCAPED = re.compile(r"([\\`*_<>\[\]])"), r"\\\1"
_OWN_PROGRAMS = re.compile(r"\S*/\.venv/bin/")  # the path of the checkout on the controller is of no interest
_SHOWN = 110  # characters of a reason


def render(runs: Iterable[records.Record], present: str = "") -> str:
    """Return the page.

    Args:
        runs: past runs, of any kind and in any order.
        present: the current page. Its lines whose records are not in `runs` (made on another controller) are kept.
    """
    entries = {found[1]: found[0] for found in _ENTRY.finditer(present)}
    entries |= {run.id: _entry(run) for run in runs if run.kind in KINDS}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates" / "runbook"),
        autoescape=False,  # noqa: S701 - Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    changelog = [entries[name] for name in sorted(entries, reverse=True)]
    return environment.get_template("runbook.md.j2").render(phases=PHASES, changelog=changelog)


def rendered(directory: Path, file: Path = FILE) -> str:
    """Return the page, from the records in a directory and the current page."""
    return render(records.load_all(directory).records, file.read_text(encoding="utf-8") if file.exists() else "")


def _entry(run: records.Record) -> str:
    """Return the line of the changelog for a run."""
    commit = f"`{run.git.commit[:9]}`{' with changes' if run.git.dirty else ''}" if run.git.commit else "–"
    cells = [
        f"{run.started:%Y-%m-%d %H:%M}",
        run.kind,
        f"{run.target.name} ({run.target.backend})",
        f"{SIGNS[run.verdict]} {_verdict(run)}",
        "–" if run.rto_seconds is None else duration(run.rto_seconds),
        "–" if run.rpo_seconds is None else duration(run.rpo_seconds),
        commit,
        f"`{run.id}`",
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _verdict(run: records.Record) -> str:
    if run.verdict == "pass":
        return f"pass, {run.exercised.done} of {run.exercised.total} exercised" if run.exercised.total else "pass"
    reason = _OWN_PROGRAMS.sub("", one_line(run.reasons[0]))
    short = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN].rstrip()}…"
    return f"{words(run.verdict)}: {_MARKDOWN.sub(_ESCAPED, short)}"
