"""The operator's questions, in the order of asking: `playbooks/checks.yaml`, and what is rendered from it."""

from minipc.checks.load import load
from minipc.checks.schema import Check, Checks

__all__ = ["Check", "Checks", "load"]
