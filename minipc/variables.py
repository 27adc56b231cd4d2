"""Environment variables by which the CLI talks to the pyinfra and pytest processes it starts."""

from __future__ import annotations

EVENTS_VARIABLE = "MINIPC_EVENTS"
"""Path of the run's event file; unset: no events are kept."""

ENVIRONMENT_VARIABLE = "MINIPC_ENVIRONMENT"
"""Which inventory the checks are for: lab or production."""

HOST_VARIABLE = "MINIPC_HOST"
"""Alias of the machine the checks are for."""

REHEARSE_AS_VARIABLE = "MINIPC_REHEARSE_AS"
"""`production`: the lab's machines get production's group_data, with the overrides the lab can't do without."""

RUN_VARIABLE = "MINIPC_RUN"
"""Folder of the run that this process is a part of: what it does is kept there; the record is that run's."""

COMMIT_VARIABLE = "MINIPC_COMMIT"
"""The commit a run began with, `+dirty` behind it when there were changes."""

BREAK_GLASS_VARIABLE = "MINIPC_BREAK_GLASS"
"""Not empty: the machine is reached beside its VPN, at its `lan_address`, and stays reachable there."""

LAB_VPN_VARIABLE = "MINIPC_LAB_VPN"
"""Not empty: the lab's machines are reached through their VPN; set for what runs in the namespace `operator`."""
