"""Name server for the lab (RFC 1035): answers A and AAAA queries from records that are read at each query.

It supports what a stub resolver needs: one question over UDP, and answers that fit into 512 bytes.
"""

from __future__ import annotations

import ipaddress
import socketserver
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PORT = 53
_HEADER = struct.Struct("!6H")
_QUESTION_END = struct.Struct("!2H")
_ANSWER = struct.Struct("!3HIH")
_TYPES = {1: "A", 28: "AAAA"}
_ANSWERED = 0x8400  # a response, authoritative
_RECURSION_DESIRED = 0x0100
_OK, _FORMAT_ERROR, _NO_SUCH_NAME, _REFUSED = 0, 1, 3, 5
_QUESTION_NAME = 0xC00C  # compression pointer to the name after the header


@dataclass(frozen=True)
class Address:
    """A record. The name is in lower case without a dot at the end, the type is "A" or "AAAA"."""

    name: str
    type: str
    content: str
    ttl_s: int


def answer(query: bytes, zone: str, records: Iterable[Address]) -> bytes:
    """Return the response to a query: records, NXDOMAIN for other names of the zone, REFUSED for other zones."""
    if len(query) < _HEADER.size:
        return b""
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    try:
        if questions != 1:
            raise ValueError("expected one question")
        name, kind, end = _question(query)
    except (ValueError, struct.error, IndexError):
        return _HEADER.pack(number, _ANSWERED | _FORMAT_ERROR, 0, 0, 0, 0)
    named = [record for record in records if record.name == name]
    inside = name == zone or name.endswith(f".{zone}")
    code = _OK if named or name == zone else _NO_SUCH_NAME if inside else _REFUSED
    found = [record for record in named if record.type == _TYPES.get(kind)]
    header = _HEADER.pack(number, _ANSWERED | (flags & _RECURSION_DESIRED) | code, 1, len(found), 0, 0)
    return header + query[_HEADER.size : end] + b"".join(_resource(record, kind) for record in found)


def _question(query: bytes) -> tuple[str, int, int]:
    """Return name, type and end offset of the question."""
    labels, offset = [], _HEADER.size
    while length := query[offset]:
        if length > 63:
            raise ValueError("label is compressed or too long")
        labels.append(query[offset + 1 : offset + 1 + length].decode("ascii").lower())
        offset += 1 + length
    kind, _ = _QUESTION_END.unpack_from(query, offset + 1)
    return ".".join(labels), kind, offset + 1 + _QUESTION_END.size


def _resource(record: Address, kind: int) -> bytes:
    packed = ipaddress.ip_address(record.content).packed
    return _ANSWER.pack(_QUESTION_NAME, kind, 1, record.ttl_s, len(packed)) + packed


def serve(host: str, zone: str, records: Callable[[], Iterable[Address]], port: int = PORT) -> socketserver.UDPServer:
    """Answer queries in a thread until the process ends. Raises OSError if the address is in use."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, socket = self.request
            if response := answer(query, zone, records()):
                socket.sendto(response, self.client_address)

    server = socketserver.ThreadingUDPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
