"""Evidence: one JSON record per rehearsal, drill, rebuild, converge, benchmark or long test.

A record is written once and never changed. It says what was tried, on what, with which versions, how long
each part took, what was not exercised and why. It can't contradict itself: one that claims `pass` while a part
of it failed is refused when it is made and when it is read. The summary in the terminal, the HTML report and
the runbook's changelog are all rendered from it. Field by field: docs/reference/record.md.
"""

from __future__ import annotations

from minipc.records.judgement import Record, conclude, exit_code, headline, shown_as
from minipc.records.observed import Observed, observe, sum_up
from minipc.records.schema import (
    Artifact,
    Check,
    Component,
    Controller,
    DataClassResult,
    Door,
    Draft,
    Exercised,
    Gate,
    Git,
    Kind,
    NotExercised,
    Operation,
    Override,
    Phase,
    Target,
)
from minipc.records.store import Broken, Loaded, RecordError, file_name, load, load_all, new_id, save, schema_json

__all__ = [
    "Artifact",
    "Broken",
    "Check",
    "Component",
    "Controller",
    "DataClassResult",
    "Door",
    "Draft",
    "Exercised",
    "Gate",
    "Git",
    "Kind",
    "Loaded",
    "NotExercised",
    "Observed",
    "Operation",
    "Override",
    "Phase",
    "Record",
    "RecordError",
    "Target",
    "conclude",
    "exit_code",
    "file_name",
    "headline",
    "load",
    "load_all",
    "new_id",
    "observe",
    "save",
    "schema_json",
    "shown_as",
    "sum_up",
]
