"""Records: one JSON file for each rehearsal, drill, rebuild, converge, benchmark or long test.

A record is written once and never changed. It contains what was tried, on which machine, with which versions, how
long each part took, and what was not exercised and why. It cannot contradict itself: a record with the verdict `pass`
and a failed part is refused when it is written and when it is read. The summary in the terminal, the HTML report and
the runbook's changelog are all rendered from it. The fields: docs/reference/record.md.
"""

from __future__ import annotations

from minipc.evidence.records.judgement import Record, conclude, exit_code, headline, shown_as
from minipc.evidence.records.observed import Observed, observe, sum_up
from minipc.evidence.records.schema import (
    Artifact,
    Check,
    Component,
    Controller,
    DataClassResult,
    Draft,
    Exercised,
    Gate,
    Git,
    Kind,
    NotExercised,
    Operation,
    Override,
    Phase,
    PortState,
    Target,
)
from minipc.evidence.records.store import (
    Broken,
    Loaded,
    RecordError,
    file_name,
    load,
    load_all,
    new_id,
    save,
    schema_json,
)

__all__ = [
    "Artifact",
    "Broken",
    "Check",
    "Component",
    "Controller",
    "DataClassResult",
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
    "PortState",
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
