"""Runs on the machine, by a timer: its public records follow its public address.

    python3 -m minipc.dns.follow CONFIG TOKEN            once, then ends
    python3 -m minipc.dns.follow CONFIG --address A      prints the public address and ends

Only records that this machine holds are touched: the cutover writes the holder's identity into the record's comment.
So an old machine that comes back after its successor took over changes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from minipc.dns.address import public_address
from minipc.dns.changes import Change, confirm, find, same_content
from minipc.dns.cloudflare import Cloudflare
from minipc.dns.records import Kind, Provider
from minipc.errors import MinipcError


@dataclass(frozen=True)
class FollowConfig:
    """What deploys/dns.py writes to the machine.

    Attributes:
        identity: this machine's.
        records: names and types.
    """

    identity: str
    zone: str
    api_url: str
    address_url: str
    records: tuple[tuple[str, Kind], ...]


def follow(
    config: FollowConfig, provider: Provider, ask: Callable[[Kind], str], say: Callable[[str], None] = print
) -> list[Change]:
    """Brings the records that this machine holds in line with its address; returns what was changed.

    Raises:
        DnsError, SecretError: the provider or the address can't be had, or the records don't stay as set.
    """
    present = provider.records()
    held = []
    for name, kind in config.records:
        record = find(present, name, kind)
        if record is not None and record.holder == config.identity:
            held.append(record)
        else:
            say(f"{name} {kind}: {_why_not(record.holder if record else None)}; left alone")
    addresses = {kind: ask(kind) for kind in dict.fromkeys(cast(Kind, record.type) for record in held)}
    wanted = [replace(record, content=addresses[cast(Kind, record.type)]) for record in held]
    needed = [Change(old, new) for old, new in zip(held, wanted, strict=True) if not same_content(old, new)]
    for change in needed:
        change.apply(provider)
        say(str(change))
    confirm(provider, [change.wanted for change in needed])
    return needed


def _why_not(holder: str | None) -> str:
    return f"held by another machine ({holder})" if holder else "held by no machine, `minipc dns cutover` gives it one"


def read_config(path: Path) -> FollowConfig:
    """Raises MinipcError when the file isn't what deploys/dns.py writes."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        records = tuple((str(name), kind) for name, kind in values.pop("records") if kind in get_args(Kind))
        return FollowConfig(**values, records=records)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MinipcError(f"{path} can't be used ({type(error).__name__})", "`minipc apply dns` writes it") from None


def _token(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError as error:
        raise MinipcError(f"the token file {path} can't be read: {error.strerror}", "`minipc apply dns`") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="minipc.dns.follow")
    parser.add_argument("config", type=Path)
    parser.add_argument("token", type=Path, nargs="?", help="file with the token")
    parser.add_argument("--address", choices=get_args(Kind), help="print the public address instead")
    options = parser.parse_args(arguments)
    try:
        config = read_config(options.config)
        if options.address:
            print(public_address(options.address, config.address_url, say=_warn))
        elif options.token:
            provider = Cloudflare(config.zone, _token(options.token), config.api_url, say=_warn)
            changed = follow(config, provider, lambda kind: public_address(kind, config.address_url, say=_warn))
            print(f"{len(changed)} changed")
        else:
            parser.error("TOKEN or --address is needed")
    except MinipcError as error:
        _warn(str(error))
        return error.exit_code
    return 0


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
