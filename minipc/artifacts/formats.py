"""Recognise a file of the wrong kind or architecture by its first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Format = Literal["elf", "zip", "tar", "tar.gz", "tar.zst", "yaml"]

_MAGIC: dict[Format, tuple[int, bytes]] = {
    "elf": (0, b"\x7fELF"),
    "zip": (0, b"PK\x03\x04"),
    "tar": (257, b"ustar"),
    "tar.gz": (0, b"\x1f\x8b"),
    "tar.zst": (0, b"\x28\xb5\x2f\xfd"),
}
# e_machine of the ELF header (System V ABI): offset 18, little endian on both architectures.
_ELF_MACHINES = {"amd64": 62, "arm64": 183}


def problem(path: Path, expected: Format, arch: str) -> str | None:
    """Return why the file cannot have the expected format and architecture, or None. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(512)
    if expected == "yaml":
        # The end of `head` may be inside a multi-byte character.
        is_text = b"\x00" not in head and head.decode("utf-8", errors="ignore").strip()
        return None if is_text else "its format is not yaml: it is not text"
    offset, magic = _MAGIC[expected]
    if head[offset : offset + len(magic)] != magic:
        return f"its format is not {expected}"
    machine = int.from_bytes(head[18:20], "little")
    if expected == "elf" and arch in _ELF_MACHINES and machine != _ELF_MACHINES[arch]:
        return f"it is a program for another architecture (ELF machine {machine}, {arch} is {_ELF_MACHINES[arch]})"
    return None
