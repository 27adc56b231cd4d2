"""Files in which the off-site host receives WAL before its segment is complete: written, read, and restored.

A file has the beginning of one segment. It grows by records, one for each part that was sent: length of the ciphertext,
HMAC-SHA256, ciphertext (`openssl enc`, AES-256-CBC) of the compressed part. Both keys come from the passphrase of
repo2, which the off-site host does not know. The HMAC covers database, segment and position, so a record that was
changed, moved or cut off ends the file. See docs/decisions/0088.
"""

from __future__ import annotations

import configparser
import hmac
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minipc_machine import schema
from minipc_machine.program import FailedError
from minipc_machine.sftp import Server, Sftp

SETTINGS = Path("/etc/minipc/backups/wal-stream.json")
PGBACKREST = Path("/etc/pgbackrest/pgbackrest.conf")
SEGMENT_BYTES = 16 * 1024**2
NAME = re.compile(r"([0-9A-F]{24})\.([0-9a-f]{16})")
"""Name of a file: the segment, and the connection that sent it."""
_HEADER = struct.Struct(">I32s")
_CIPHER = ("openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-iter", "1")
_LIMIT_S = 60


@dataclass(frozen=True)
class Keys:
    """Keys of one database's stream. They are never shown.

    Attributes:
        system_id: the database's system identifier.
    """

    system_id: str
    cipher: str = field(repr=False)
    mac: bytes = field(repr=False)

    def seal(self, segment: str, position: int, part: bytes) -> bytes:
        """Return the record of a part of a segment, which begins at `position`. Raises FailedError."""
        sealed = self._openssl(zlib.compress(part, 1), "-e")
        return _HEADER.pack(len(sealed), self._mac(segment, position, sealed)) + sealed

    def open(self, segment: str, content: bytes) -> bytes:
        """Return the beginning of a segment from a file: up to the first record that is not whole and authentic."""
        found = bytearray()
        while len(content) >= _HEADER.size:
            length, mac = _HEADER.unpack_from(content)
            sealed = content[_HEADER.size : _HEADER.size + length]
            if not hmac.compare_digest(mac, self._mac(segment, len(found), sealed)):
                break
            try:
                found += zlib.decompress(self._openssl(sealed, "-d"))
            except zlib.error:
                break
            content = content[_HEADER.size + length :]
        return bytes(found)

    def _mac(self, segment: str, position: int, sealed: bytes) -> bytes:
        head = f"minipc WAL 1\0{self.system_id}\0{segment}\0{position}\0"
        return hmac.digest(self.mac, head.encode() + sealed, "sha256")

    def _openssl(self, data: bytes, direction: str) -> bytes:
        key, write = os.pipe()
        try:
            os.write(write, self.cipher.encode())
            os.close(write)
            argv = [*_CIPHER, direction, "-pass", f"fd:{key}"]
            environment = {"PATH": os.environ["PATH"]}
            done = subprocess.run(
                argv, input=data, capture_output=True, pass_fds=[key], env=environment, timeout=_LIMIT_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise FailedError(f"openssl failed: {error}") from None
        finally:
            os.close(key)
        return done.stdout


def server() -> Server | None:
    """Return where WAL is sent to; None if it is not sent. Raises SchemaError if the settings don't fit."""
    return schema.load(Server, SETTINGS) if SETTINGS.exists() else None


def keys(system_id: str) -> Keys:
    """Return the keys of a database's stream. Raises FailedError if pgBackRest's configuration has no passphrase."""
    parser = configparser.RawConfigParser()
    parser.read(PGBACKREST)
    passphrase = parser.get("global", "repo2-cipher-pass", fallback="")
    if not passphrase:
        raise FailedError(f"{PGBACKREST} has no repo2-cipher-pass: converge `repositories`")
    cipher, mac = (hmac.digest(passphrase.encode(), f"minipc WAL {what}".encode(), "sha256") for what in ("a", "b"))
    return Keys(system_id, cipher.hex(), mac)


def fetch(source: Server, own: Keys, folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, int]:
    """Fetch what the off-site host has, and replace `folder` by one with the segments, filled up with zeros.

    Args:
        wanted: decides by the name of a segment whether it is fetched.

    Returns:
        Segment -> how many bytes of it, from its beginning, are there.

    Raises:
        FailedError: the off-site host cannot be reached or read, or there is no space.
    """
    shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, int] = {}
    try:
        folder.mkdir(mode=0o700)
        shutil.chown(folder, "postgres", "postgres")
        with tempfile.TemporaryDirectory(dir=folder) as received, Sftp(source) as sftp:
            shutil.chown(received, "postgres", "postgres")
            for name in sorted(sftp.names()):
                match = NAME.fullmatch(name)
                if not match or not wanted(match[1]):
                    continue
                # It may be removed meanwhile, because its segment was archived.
                sftp.run(f"-get {name} {received}/{name}")
                path = Path(received) / name
                part = own.open(match[1], path.read_bytes())[:SEGMENT_BYTES] if path.exists() else b""
                path.unlink(missing_ok=True)
                if len(part) > found.get(match[1], 0):
                    found[match[1]] = len(part)
                    _write_segment(folder / match[1], part)
    except OSError as error:
        raise FailedError(str(error)) from None
    return found


def _write_segment(path: Path, part: bytes) -> None:
    """Write a segment as PostgreSQL expects it: always of the same size."""
    path.write_bytes(part)
    os.truncate(path, SEGMENT_BYTES)
    shutil.chown(path, "postgres", "postgres")
    path.chmod(0o600)


def timeline_of(segment: str) -> int:
    """Return the timeline in the name of a segment."""
    return int(segment[:8], 16)


def number_of(segment: str) -> int:
    """Return a segment's place in the order of segments, whatever the timeline: 256 of 16 MB each make a "log"."""
    return (int(segment[8:16], 16) << 8) + int(segment[16:24], 16)


def name_of(timeline: int, number: int) -> str:
    """Return the name of the segment with that place in the order, on a timeline."""
    return f"{timeline:08X}{number >> 8:08X}{number & 0xFF:08X}"
