"""What a user's inventory files import. These names stay stable when the library behind them changes."""

from minipc.pyinfra_ext.guards import refuse_empty_match
from minipc.remote.inventory import agent_machine, offsite_machine, target

__all__ = ["agent_machine", "offsite_machine", "refuse_empty_match", "target"]
