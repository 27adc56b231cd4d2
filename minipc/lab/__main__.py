"""`python -m minipc.lab` is `minipc lab`."""

from __future__ import annotations

from minipc.lab.cli import lab

lab(prog_name="minipc lab")
