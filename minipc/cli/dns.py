"""`minipc dns`: show, lower, plan, cutover, settle."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Sequence

import click

from minipc.cli.options import target_options
from minipc.core.environment import Environment
from minipc.core.errors import EXIT_CHANGES_PENDING
from minipc.core.formatting import count
from minipc.dns.changes import Change
from minipc.dns.provider import Addresses, open_provider, wanted_records
from minipc.dns.records import Kind, Record
from minipc.remote.inventory import Target, the_target
from playbooks import dns_cutover


def _address(version: int) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Make a click callback that takes an address of one family."""

    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not an address") from None
        if address.version != version:
            raise click.BadParameter(f"{value!r} is not an IPv{version} address")
        return str(address)

    return check


def _address_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--ipv6", callback=_address(6), help="Public IPv6 address. Default: dns_ipv6, else what the machine reports."
    )(command)
    return click.option(
        "--ipv4", callback=_address(4), help="Public IPv4 address. Default: dns_ipv4, else what the machine reports."
    )(command)


@click.group()
def dns() -> None:
    """Show and change the public DNS records of the service."""


@dns.command()
@target_options
def show(environment: Environment, alias: str | None) -> None:
    """Show the current state of the configured records at the provider."""
    target = the_target(environment, alias)
    provider = open_provider(target.settings, _tell)
    present = provider.records()
    for wanted in target.settings.dns.records:
        found = [record for record in present if record.name == wanted.name and record.type in (wanted.type, "CNAME")]
        for record in found:
            click.echo(_described(record, target))
        if not found:
            click.echo(f"{wanted.name} {wanted.type}: no record")
    others = [zone for zone in provider.zones() if zone != target.settings.dns.zone]
    if others:
        click.echo(
            f"the token can also change {', '.join(others)}: use a token for {target.settings.dns.zone} only", err=True
        )


@dns.command()
@target_options
@_address_options
def plan(environment: Environment, alias: str | None, ipv4: str | None, ipv6: str | None) -> None:
    """Show what a cutover would change. Exit code 2: changes are pending."""
    target = the_target(environment, alias)
    needed = dns_cutover.plan(open_provider(target.settings, _tell), _wanted(target, ipv4, ipv6))
    for change in needed:
        click.echo(f"would change  {change}")
    click.echo(f"{count(len(needed), 'change')} pending")
    if needed:
        sys.exit(EXIT_CHANGES_PENDING)


@dns.command()
@target_options
def lower(environment: Environment, alias: str | None) -> None:
    """Lower the TTL of the records before a move. Wait for the old TTL to pass before the cutover."""
    target = the_target(environment, alias)
    changed = dns_cutover.lower(open_provider(target.settings, _tell), target.settings, click.echo)
    _summarize(changed)
    waits = [change.present.cached_s for change in changed if change.present]
    if waits:
        click.echo(f"wait {max(waits)} s before the cutover, until no cache has the old TTL")


@dns.command()
@target_options
@_address_options
def cutover(environment: Environment, alias: str | None, ipv4: str | None, ipv6: str | None) -> None:
    """Point the public name to this machine, and read the records back."""
    target = the_target(environment, alias)
    _summarize(dns_cutover.cutover(open_provider(target.settings, _tell), _wanted(target, ipv4, ipv6), click.echo))


@dns.command()
@target_options
def settle(environment: Environment, alias: str | None) -> None:
    """Set the TTL of the records back to its usual value after a move."""
    target = the_target(environment, alias)
    _summarize(dns_cutover.settle(open_provider(target.settings, _tell), target.settings, click.echo))


def _wanted(target: Target, ipv4: str | None, ipv6: str | None) -> list[Record]:
    options: dict[Kind, str | None] = {"A": ipv4, "AAAA": ipv6}
    given: Addresses = {kind: address for kind, address in options.items() if address}
    known = dns_cutover.addresses_of(target, given)
    return wanted_records(target.settings, target.data.get("machine_identity"), known)


def _described(record: Record, target: Target) -> str:
    ours = record.holder is not None and record.holder == target.data.get("machine_identity")
    holder = f"held by {target.alias}" if ours else f"held by machine {record.holder}" if record.holder else "not held"
    proxied = ", proxied" if record.proxied else ""
    return f"{record}: {record.content}, ttl {record.cached_s} s{proxied}, {holder}"


def _summarize(changed: Sequence[Change]) -> None:
    click.echo(f"{count(len(changed), 'record')} changed and read back" if changed else "nothing to change")


def _tell(text: str) -> None:
    click.echo(text, err=True)
