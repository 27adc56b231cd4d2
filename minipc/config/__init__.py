"""The configuration: values in `group_data/`, rules in `minipc/config/schema.py`."""

from minipc.config.load import load, parse
from minipc.config.schema import Settings

__all__ = ["Settings", "load", "parse"]
