"""A name server for the lab: answers A and AAAA from records that are asked for at each question (RFC 1035).

Only what a stub resolver needs: one question over UDP, answers that fit into 512 bytes. Standard library only.
"""

from __future__ import annotations

import ipaddress
import socketserver
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

PORT = 53
_HEADER = struct.Struct("!6H")
_QUESTION_END = struct.Struct("!2H")
_ANSWER = struct.Struct("!3HIH")
_TYPES = {1: "A", 28: "AAAA"}
_ANSWERED = 0x8400  # a response, authoritative
_RECURSION_DESIRED = 0x0100
_OK, _FORMAT_ERROR, _NO_SUCH_NAME, _REFUSED = 0, 1, 3, 5
_NAME_OF_THE_QUESTION = 0xC00C  # compression: what stands after the header


@dataclass(frozen=True)
class Address:
    """One record: a name in lower case without a dot at the end, "A" or "AAAA", an address, seconds."""

    name: str
    type: str
    content: str
    ttl_s: int


def answer(query: bytes, zone: str, records: Iterable[Address]) -> bytes:
    """The response to a query: from the records, NXDOMAIN for other names of the zone, REFUSED for other zones."""
    if len(query) < _HEADER.size:
        return b""
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    try:
        if questions != 1:
            raise ValueError("one question is all that anybody asks")
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
    """Name, type, and where the question ends."""
    labels, at = [], _HEADER.size
    while length := query[at]:
        if length > 63:
            raise ValueError("compressed or too long")
        labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    kind, _ = _QUESTION_END.unpack_from(query, at + 1)
    return ".".join(labels), kind, at + 1 + _QUESTION_END.size


def _resource(record: Address, kind: int) -> bytes:
    packed = ipaddress.ip_address(record.content).packed
    return _ANSWER.pack(_NAME_OF_THE_QUESTION, kind, 1, record.ttl_s, len(packed)) + packed


def serve(host: str, zone: str, records: Callable[[], Iterable[Address]], port: int = PORT) -> socketserver.UDPServer:
    """Answers in a thread until the process ends. Raises OSError when the address is taken."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, socket = self.request
            _send(socket, answer(data, zone, records()), self.client_address)

    server = socketserver.ThreadingUDPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _send(socket: Any, response: bytes, to: Any) -> None:
    if response:
        socket.sendto(response, to)
