"""Run `minipc lab` as `python -m rehearsal.lab`."""

from __future__ import annotations

from rehearsal.lab.cli import lab

lab(prog_name="minipc lab")
