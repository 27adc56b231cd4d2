"""Old name of `refuse_empty_match`, for inventory files of version 0.1. New files import `minipc.inventory`."""

from minipc.pyinfra_ext.guards import refuse_empty_match

__all__ = ["refuse_empty_match"]
