"""Value types of the configuration. Each error says what is allowed and the nearest valid value."""

from __future__ import annotations

import base64
import difflib
import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

_LABEL = re.compile(r"^(?!-)[a-z0-9-]{1,63}(?<!-)$")
_USER = re.compile(r"^[a-z_][a-z0-9_-]{0,31}$")
_INTERFACE = re.compile(r"^[A-Za-z0-9._-]{1,15}$")
_UNIT = re.compile(r"^[a-z][a-z0-9-]{0,31}$")
# Lexicon guesses by itself, is for files of a name server on this computer, and two old names.
_NOT_A_DNS_PROVIDER = {"auto", "linode4", "localzone", "zeit"}
_IDENTIFIER = re.compile(r"^[a-z_][a-z0-9_]{0,62}$")


def _domain(value: str) -> str:
    labels = value.split(".")
    # A last label of digits only is a piece of an IPv4 address, never a name (RFC 1123, 2.1).
    if len(labels) >= 2 and all(map(_LABEL.match, labels)) and len(value) <= 253 and not labels[-1].isdigit():
        return value
    host = re.sub(r"^[a-z+]+://", "", value.strip().lower()).split("/")[0].split(":")[0]
    nearest = ".".join(part for part in (re.sub(r"[^a-z0-9-]", "", x).strip("-") for x in host.split(".")) if part)
    hint = f"; did you mean {nearest!r}?" if "." in nearest and nearest != value else ""
    raise ValueError(f"not a domain name; allowed: lower-case labels joined by dots, such as 'www.example.org'{hint}")


def _dns_provider(value: str) -> str:
    if value == "none":
        return value
    spec = find_spec("lexicon")  # without loading it
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or () for path in Path(folder).glob("_private/providers/[!_]*.py")]
    allowed = ["none", *sorted({path.stem for path in files} - _NOT_A_DNS_PROVIDER)]
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"not a DNS provider that lexicon knows; allowed: {', '.join(allowed)}{hint}")
    return value


def _registry(value: str) -> str:
    name, colon, port = value.partition(":")
    if colon and port.isdigit():
        if not 0 < int(port) < 65536:
            raise ValueError(f"not a TCP port: {port}; allowed: 1 to 65535")
        return f"{name if name == 'localhost' else _domain(name)}:{port}"
    return _domain(value)


def _cidr(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=True))
    except ValueError as error:
        try:
            nearest = f"; did you mean {str(ipaddress.ip_network(value, strict=False))!r}?"
        except ValueError:
            nearest = ""
        raise ValueError(f"not a network ({error}); allowed: CIDR such as '10.77.0.0/24'{nearest}") from None


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        bare = value.split("/")[0].strip()
        try:
            nearest = f"; did you mean {str(ipaddress.ip_address(bare))!r}?"
        except ValueError:
            nearest = ""
        raise ValueError(f"not an IP address; allowed: IPv4 or IPv6 such as '10.88.0.1'{nearest}") from None


def _host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        if re.fullmatch(r"[\d.]+", value):
            raise ValueError("not an IP address; allowed: an IP address or a domain name") from None
        return _domain(value)


def endpoint(value: str) -> str:
    """Return a host with an optional TCP port, as S3 has it. Raise ValueError with what is allowed."""
    if "/" in value:
        bare = re.sub(r"^[a-z0-9]+://", "", value.strip()).split("/")[0]
        raise ValueError(f"not a host; allowed: HOST or HOST:PORT, without https://; did you mean {bare!r}?")
    host, colon, port = value.partition(":")
    if colon and not (port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"not a TCP port: {port!r}; allowed: 1 to 65535")
    return f"{_host(host)}{colon}{port}"


def _pattern(pattern: re.Pattern[str], what: str, example: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.match(value):
            cleaned = re.sub(r"[^a-z0-9_-]", "", value.lower()).lstrip("-0123456789")
            hint = f"; did you mean {cleaned!r}?" if cleaned and pattern.match(cleaned) else ""
            raise ValueError(f"not {what}; allowed: {pattern.pattern}, such as {example!r}{hint}")
        return value

    return AfterValidator(check)


def _ssh_public_key(value: str) -> str:
    kind, _, rest = value.strip().partition(" ")
    try:
        # The blob begins with its own type, length first (RFC 4253, 6.6).
        blob = base64.b64decode(rest.split()[0], validate=True)
        matches = blob[4 : 4 + int.from_bytes(blob[:4])] == kind.encode()
    except (IndexError, ValueError):
        matches = False
    if not matches:
        raise ValueError("not an SSH public key; allowed: the line of a .pub file: 'ssh-ed25519 AAAAC3… you@laptop'")
    return value.strip()


def _wireguard_key(value: str) -> str:
    try:
        raw = base64.b64decode(value, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32 or not any(raw):
        raise ValueError("not a WireGuard public key; allowed: 44 characters of base64, as `wg pubkey` prints them")
    return value


def _url(value: str) -> str:
    if not re.match(r"^https?://[^\s/]+(/\S*)?$", value):
        nearest = f"; did you mean {'https://' + value!r}?" if re.match(r"^[\w.-]+(/\S*)?$", value) else ""
        raise ValueError(f"not a URL; allowed: http:// or https:// and a host{nearest}")
    return value.rstrip("/")


Domain = Annotated[str, AfterValidator(_domain)]
DnsProvider = Annotated[str, AfterValidator(_dns_provider)]
Registry = Annotated[str, AfterValidator(_registry)]
Cidr = Annotated[str, AfterValidator(_cidr)]
Address = Annotated[str, AfterValidator(_address)]
# What systemd.time(7) understands and we use: an optional day, an optional date, a time.
_CALENDAR = re.compile(
    r"^((Mon|Tue|Wed|Thu|Fri|Sat|Sun)([.,]+(Mon|Tue|Wed|Thu|Fri|Sat|Sun))* )?([\d*,/-]+-[\d*,/-]+-?[\d*,/-]* )?"
    r"[\d*,/.]+:[\d*,/]+(:[\d*,/]+)?$"
)


def _calendar(value: str) -> str:
    if not _CALENDAR.match(value):
        raise ValueError("not a systemd calendar expression; allowed: for example 'Sun 02:30', '03:30' or '00/6:15'")
    return value


Calendar = Annotated[str, AfterValidator(_calendar)]
Host = Annotated[str, AfterValidator(_host)]
Url = Annotated[str, AfterValidator(_url)]
WireguardKey = Annotated[str, AfterValidator(_wireguard_key)]
SshPublicKey = Annotated[str, AfterValidator(_ssh_public_key)]
UserName = Annotated[str, _pattern(_USER, "a user name", "operator")]
Interface = Annotated[str, _pattern(_INTERFACE, "a network interface name", "enp1s0")]
UnitName = Annotated[str, _pattern(_UNIT, "a name for a unit", "prometheus")]
SqlName = Annotated[str, _pattern(_IDENTIFIER, "an SQL identifier", "shop")]
Port = Annotated[int, Field(ge=1, le=65535)]
Megabytes = Annotated[int, Field(ge=1)]
Days = Annotated[int, Field(ge=1, le=3650)]
Seconds = Annotated[int, Field(ge=1)]
Percent = Annotated[int, Field(ge=1, le=90)]
