"""Runs on the machine, by a timer: its public records follow its public address.

    python3 -m minipc.dns.follow CONFIG TOKEN            once, then ends
    python3 -m minipc.dns.follow CONFIG --address A      prints the public address and ends

Only records that this machine holds are touched: the cutover writes the holder's identity into a TXT record.
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

from minipc.core.errors import MinipcError
from minipc.dns.address import public_address
from minipc.dns.changes import Change, confirm, find, same_content
from minipc.dns.lexicon_provider import LexiconProvider
from minipc.dns.records import Kind, Provider


@dataclass(frozen=True)
class FollowConfig:
    """What deploys/dns.py writes to the machine.

    Attributes:
        identity: this machine's.
        provider: lexicon's name of the DNS provider.
        options: lexicon's options for it that are not secret.
        records: names and types.
    """

    identity: str
    provider: str
    options: dict[str, str]
    zone: str
    api_url: str | None
    address_url: str
    records: tuple[tuple[str, Kind], ...]


def follow(
    config: FollowConfig, provider: Provider, ask: Callable[[Kind], str], say: Callable[[str], None] = print
) -> list[Change]:
    """Brings the records that this machine holds in line with its address; returns what was changed.

    Raises:
        DnsError, SecretError: the provider or the address is not available, or the records don't stay as set.
    """
    present = provider.records()
    held = []
    for name, kind in config.records:
        record = find(present, name, kind)
        if record is not None and record.holder == config.identity:
            held.append(record)
        else:
            say(f"{name} {kind}: {_why_not(record.holder if record else None)}; not changed")
    addresses = {kind: ask(kind) for kind in dict.fromkeys(cast(Kind, record.type) for record in held)}
    wanted = [replace(record, content=addresses[cast(Kind, record.type)]) for record in held]
    needed = [Change(old, new) for old, new in zip(held, wanted, strict=True) if not same_content(old, new)]
    for change in needed:
        change.apply(provider)
        say(str(change))
    confirm(provider, [change.wanted for change in needed])
    return needed


def _why_not(holder: str | None) -> str:
    return f"held by another machine ({holder})" if holder else "not held by a machine; run `minipc dns cutover`"


def read_config(path: Path) -> FollowConfig:
    """Read the settings. Raises MinipcError if the file is not what deploys/dns.py writes."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        records = tuple((str(name), kind) for name, kind in values.pop("records") if kind in get_args(Kind))
        return FollowConfig(**values, records=records)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MinipcError(
            f"{path} is not valid ({type(error).__name__})", "run `minipc apply dns` to write it again"
        ) from None


def _token(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError as error:
        raise MinipcError(
            f"the token file {path} cannot be read: {error.strerror}", "run `minipc apply dns` to write it again"
        ) from None


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
            print(public_address(options.address, config.address_url))
        elif options.token:
            provider = LexiconProvider(
                config.provider, config.zone, _token(options.token), config.options, config.api_url, say=_warn
            )
            changed = follow(config, provider, lambda kind: public_address(kind, config.address_url))
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
