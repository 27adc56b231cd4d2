"""Publishers' checksum files: `sha256sum` output, or one bare hash."""

from __future__ import annotations

import re

# GNU coreutils: hash, a space, a space (text) or `*` (binary), name; `\` in front marks an escaped name.
_LINE = re.compile(r"\\?(?P<hash>[0-9a-fA-F]{64})(?:[ \t]+\*?(?P<name>\S.*))?")


def published_hash(text: str, filename: str) -> str:
    """The sha256 that a publisher's checksum file gives for a file, lower case.

    Args:
        text: the checksum file.
        filename: the file's own name; a path in front of it (`./dist/`) is ignored.

    Raises:
        ValueError: the file is not named, or is named with two different hashes, or this is no checksum file.
    """
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    matches = [_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    entries = [(match["hash"].lower(), match["name"]) for match in matches if match]
    if not entries:
        raise ValueError("it holds no sha256")
    if len(entries) == len(matches) == 1 and entries[0][1] is None:
        return entries[0][0]
    found = {value for value, name in entries if name and re.split(r"[/\\]", name)[-1] == filename}
    if len(found) != 1:
        raise ValueError(f"it names {filename} {'with different hashes' if found else 'nowhere'}")
    return found.pop()
