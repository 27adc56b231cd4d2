"""Options that many commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from minipc.core.environment import LAB, PRODUCTION, Environment
from minipc.core.variables import BREAK_GLASS_VARIABLE

Command = TypeVar("Command", bound=Callable[..., Any])


# click shows and reads an environment by its name (`str`), and hands the command the `Environment`.
ENVIRONMENT = click.Choice([PRODUCTION, LAB])


def environment_option(command: Command) -> Command:
    """Add `--inventory`, as the parameter `environment`."""
    return click.option(
        "--inventory",
        "environment",
        type=ENVIRONMENT,
        default=PRODUCTION,
        show_default=True,
        help="Which inventory to use.",
    )(command)


def host_option(command: Command) -> Command:
    """Add `--host`, as the parameter `alias`."""
    return click.option("--host", "alias", help="Which machine, if the inventory has several.")(command)


def target_options(command: Command) -> Command:
    """Add `--inventory` and `--host`."""
    return environment_option(host_option(command))


def machine_options(command: Command) -> Command:
    """Add `--inventory`, `--host` and `--break-glass`."""
    command = click.option(
        "--break-glass",
        is_flag=True,
        expose_value=False,
        callback=_break_the_glass,
        help="Bypass the VPN: reach the machine at its lan_address (docs/howto/vpn.md).",
    )(command)
    return target_options(command)


def changes_the_machine(command: Command) -> Command:
    """Hold the lock of the machine while the command runs, so that two operators do not change it at once."""

    @functools.wraps(command)
    def run(environment: Environment, alias: str | None, **others: Any) -> Any:
        from minipc.remote import operator_lock
        from minipc.remote.inventory import the_target

        with operator_lock.held(the_target(environment, alias), click.get_current_context().command_path):
            return command(environment=environment, alias=alias, **others)

    return cast(Command, run)


def _break_the_glass(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        bypass_the_vpn()


def bypass_the_vpn() -> None:
    """Have this run and every process it starts reach the machine at its `lan_address`."""
    os.environ[BREAK_GLASS_VARIABLE] = "1"
