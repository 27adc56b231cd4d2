"""Read publishers' checksum files: `sha256sum` output, or one bare hash."""

from __future__ import annotations

import re

# GNU coreutils: hash, a space, a space (text) or `*` (binary), name; `\` in front marks an escaped name.
_LINE = re.compile(r"\\?(?P<hash>[0-9a-fA-F]{64})(?:[ \t]+\*?(?P<name>\S.*))?")


def published_hash(text: str, filename: str) -> str:
    """Return the SHA-256 that a checksum file states for a file, in lower case.

    Args:
        text: the checksum file.
        filename: name of the file; folders in front of it in the checksum file (`./dist/`) are ignored.

    Raises:
        ValueError: it contains no hash, does not name the file, or states two different hashes for it.
    """
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    matches = [_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    entries = [(match["hash"].lower(), match["name"]) for match in matches if match]
    if not entries:
        raise ValueError("it contains no sha256")
    if len(entries) == len(matches) == 1 and entries[0][1] is None:
        return entries[0][0]
    found = {value for value, name in entries if name and re.split(r"[/\\]", name)[-1] == filename}
    if len(found) != 1:
        raise ValueError(f"it {'states different hashes for' if found else 'does not name'} {filename}")
    return found.pop()
