"""Rules for secret values: what the programs that use a value can take."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal

from minipc.core.errors import SecretError
from minipc.secrets.secret import Secret

Rule = Literal["password", "aws-key", "url", "line", "text", "wireguard-key", "ssh-key"]

_PATTERNS = {
    # Passwords appear in URLs, INI files, systemd environment files, ACL files and SQL. These are the characters that
    # need no quoting in any of them (RFC 3986: unreserved). bcrypt ignores everything after 72 bytes.
    "password": (r"[A-Za-z0-9._~-]{1,72}", "letters, digits and -_.~ only, 72 characters at most"),
    # Keys of S3 are base64, or what a provider makes of it. They are in INI files.
    "aws-key": (r"[A-Za-z0-9+/=._-]{3,128}", "letters, digits and +/=._- only, 3 to 128 characters"),
    "url": (r"https?://[!#-&(-;=?-\[\]^-_a-z{-~]+", 'an http or https URL without spaces, quotes, <, >, \\, ` and "'),
    # Written between double quotes into YAML.
    "line": (r"(?! )[ !#-\[\]-~]+(?<! )", 'one line of ASCII characters without " and \\, no space at either end'),
    # Variables of a service: what execve(2) takes, and far less than a Kubernetes Secret may contain (1 MiB).
    "text": (r"[^\0]{1,65536}", "text without the character NUL, 65536 characters at most"),
}


def check_value(name: str, value: str, rule: Rule) -> None:
    """Accept a value if the programs that use it can take it.

    Raises:
        SecretError: names the secret and what is allowed, never the value.
    """
    allowed = _allowed(name, value, rule)
    if allowed:
        raise SecretError(f"the value of {name} cannot be used", f"allowed: {allowed}")


def _allowed(name: str, value: str, rule: Rule) -> str:
    """Return what is allowed if the value is not, else ""."""
    if rule == "wireguard-key":
        return "" if _is_wireguard_key(value) else "a WireGuard private key as `wg genkey` prints it"
    if rule == "ssh-key":
        return "" if _is_ssh_key(name, value) else "an ed25519 private key in OpenSSH's format, without a passphrase"
    pattern, words = _PATTERNS[rule]
    return "" if re.fullmatch(pattern, value) else words


def _is_wireguard_key(value: str) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 32
    except (binascii.Error, ValueError):
        return False


def _is_ssh_key(name: str, value: str) -> bool:
    # Imported here: most runs check no key, and the library costs 0.1 s.
    from minipc.secrets import ed25519  # noqa: PLC0415

    try:
        ed25519.public_key(Secret(name, value))
    except SecretError:
        return False
    return True
