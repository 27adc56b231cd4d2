"""Write the runbook's triage chapter: `python -m minipc.checks`."""

from __future__ import annotations

from minipc.checks.load import platform
from minipc.checks.rule_files import rendered_rules
from minipc.checks.runbook import FILE, render

if __name__ == "__main__":
    FILE.write_text(render(platform(), rendered_rules()), encoding="utf-8")
    print(f"wrote {FILE}")
