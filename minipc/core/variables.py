"""Environment variables for the pyinfra and pytest processes that the CLI starts."""

from __future__ import annotations

EVENTS_VARIABLE = "MINIPC_EVENTS"
"""Path of the run's event file; if unset, no events are written."""

ENVIRONMENT_VARIABLE = "MINIPC_ENVIRONMENT"
"""Which inventory the checks are for: lab or production."""

HOST_VARIABLE = "MINIPC_HOST"
"""Alias of the machine the checks are for."""

REHEARSE_AS_VARIABLE = "MINIPC_REHEARSE_AS"
"""`production`: the lab's machines get production's group_data, with the overrides that the lab needs."""

RUN_VARIABLE = "MINIPC_RUN"
"""Folder of the run that this process belongs to. It writes its files there, and no separate record."""

COMMIT_VARIABLE = "MINIPC_COMMIT"
"""The commit at the start of a run, followed by `+dirty` if there were uncommitted changes."""

BREAK_GLASS_VARIABLE = "MINIPC_BREAK_GLASS"
"""Not empty: bypass the VPN. The machine is reached at its `lan_address`, and stays reachable there."""

LAB_VPN_VARIABLE = "MINIPC_LAB_VPN"
"""Not empty: the lab's machines are reached through their VPN; set for processes in the namespace `operator`."""

SERVICE_VARIABLE = "MINIPC_SERVICE"
"""Name of the only service whose checks run."""

SERVICES_VARIABLE = "MINIPC_SERVICES"
"""Folders with service files for the lab, separated by colons, instead of services/."""

PLACED_VARIABLE = "MINIPC_PLACED"
"""File to which a plan adds the path of each file that a converge places, one a line; if unset, none is written."""
