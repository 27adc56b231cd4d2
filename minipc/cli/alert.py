"""`minipc alert`: test the channels of the alerts."""

from __future__ import annotations

import sys

import click

from minipc.cli.options import machine_options
from minipc.core.environment import Environment


@click.group()
def alert() -> None:
    """Test the channels through which alerts reach you."""


@alert.command()
@machine_options
def test(environment: Environment, alias: str | None) -> None:
    """Send one message through each channel, from both machines, and show which arrived.

    Exit code 1: a channel refused its message. Exit code 4: no channel is set, or a machine cannot be asked.
    """
    from playbooks.alert_test import send_tests

    sys.exit(send_tests(environment, alias))
