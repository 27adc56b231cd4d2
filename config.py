"""pyinfra reads this file before every run in this folder (its name and place are pyinfra's)."""

from pyinfra import config

from minipc.pyinfra_ext.guards import refuse_unsafe_options

config.REQUIRE_PYINFRA_VERSION = ">=3.10,<4"
# Debian 13 keeps /tmp in memory.
config.TEMP_DIR = "/var/tmp"  # noqa: S108 - on the machine, and only for pyinfra's own uploads

refuse_unsafe_options()
