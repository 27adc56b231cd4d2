"""Write messages of any bytes into the journal of a lab machine, with journald's native protocol.

    python3 - MARK SEED COUNT [IDENTIFIER] <journal_fuzz.py

Each message begins with the mark and its number. The protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
import sys

# fcntl.h: F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE; journald takes only what can't change any more.
F_ADD_SEALS, ALL_SEALS = 1033, 15
LARGEST_DATAGRAM = 100_000

PIECES = [
    b'"',
    b"\\",
    b"'",
    b"\\'",
    b'\\"',
    b"\\u0000",
    b"\\x",
    b"$",
    b"${MESSAGE}",
    b"$(echo x)",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"%s%n",
    b"\n",
    b"\r\n",
    b"\t",
    b"\0",
    b"\x01\x02\x08\x0b\x0c\x1b[31m\x1f\x7f",
    b"\x80\xff\xfe\xc0\xaf\xed\xa0\x80",
    b"\xf0\x9f\x98",
    "é ü 漢字 \N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{RIGHT-TO-LEFT OVERRIDE} \u2028 \ufeff \uffff".encode(),
    b"</script>",
    b"plain words",
    b'{"level": "error", "service": "forged", "request_id": "forged"}',
    b'\\"request_id\\": \\"forged\\"',
]
WHOLE = [
    b"",
    b" ",
    b"123",
    b"1.5",
    b"true",
    b"null",
    b'{"level": "ERROR", "message": "json"}',
    b'{"broken": ',
    b'{"level": {"level": []}}',
    b"[" * 5000,
    b'{"a":' * 5000,
    b"\0",
    b"\0" * 5000,
    b"\xff" * 5000,
    b'"' * 5000,
    b"\\" * 5001,
    b"\n" * 1000,
    b"a" * 70_000,
    b"\x01" * 250_000,
    b"b" * 300_000,
    b'\xff\x00"\\' * 60_000,
]


def payload(chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(200))
    return b"".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 12)))


def field(name: bytes, value: bytes) -> bytes:
    return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"


def send(journal: socket.socket, entry: bytes) -> None:
    if len(entry) <= LARGEST_DATAGRAM:
        journal.sendto(entry, "/run/systemd/journal/socket")
        return
    file = os.memfd_create("entry", os.MFD_ALLOW_SEALING)
    view = memoryview(entry)
    while view:
        view = view[os.write(file, view) :]
    fcntl.fcntl(file, F_ADD_SEALS, ALL_SEALS)
    journal.connect("/run/systemd/journal/socket")
    socket.send_fds(journal, [b""], [file])
    os.close(file)


def main() -> None:
    mark, seed, count, *identifier = sys.argv[1:]
    chance = random.Random(int(seed))
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    messages = [*WHOLE, *(payload(chance) for _ in range(int(count) - len(WHOLE)))]
    for number, text in enumerate(messages):
        entry = field(b"MESSAGE", f"{mark} {number} ".encode() + text)
        entry += field(
            b"SYSLOG_IDENTIFIER", (identifier[0] if identifier else "fuzz").encode() + chance.randbytes(number % 3)
        )
        entry += field(b"PRIORITY", chance.choice([b"0", b"3", b"4", b"6", b"7", b"x", b"\xff"]))
        send(journal, entry)
    # And some that no mark precedes: without any text at all, with an empty one, with one that looks like a number.
    send(journal, field(b"SYSLOG_IDENTIFIER", b"empty"))
    for text in (b"", b"\0", b"123", b"1.5e3", b"true", b"null", b"\xff", b'"', b"\\", b"[]", b"{}"):
        send(journal, field(b"MESSAGE", text) + field(b"SYSLOG_IDENTIFIER", b"bare"))
    print(len(messages))


if __name__ == "__main__":
    main()
