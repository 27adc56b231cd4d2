"""The operator's questions (`playbooks/checks.yaml`) and everything that is rendered from them."""

from minipc.checks.load import load
from minipc.checks.schema import Check, Checks

__all__ = ["Check", "Checks", "load"]
