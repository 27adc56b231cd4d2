"""Send one GET request over HTTP/3: `python -m tests.verify.http3_client ADDRESS DOMAIN PATH CA_FILE`.

Prints the status, or nothing if there is no answer. A separate process, because it has to run in a network namespace.
"""

from __future__ import annotations

import asyncio
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

LIMIT_S = 10


class Client(QuicConnectionProtocol):
    """Send one request and wait for the response headers."""

    status: asyncio.Future[str]

    async def get(self, domain: str, path: str) -> str:
        """Return the HTTP status of the answer."""
        self.http = H3Connection(self._quic)
        self.status = asyncio.get_running_loop().create_future()
        head = {":method": "GET", ":scheme": "https", ":authority": domain, ":path": path}
        stream = self._quic.get_next_available_stream_id()
        self.http.send_headers(stream, [(name.encode(), value.encode()) for name, value in head.items()], True)
        self.transmit()
        return await self.status

    def quic_event_received(self, event: QuicEvent) -> None:
        for answer in self.http.handle_event(event) if hasattr(self, "http") else ():
            if isinstance(answer, HeadersReceived) and not self.status.done():
                self.status.set_result(dict(answer.headers)[b":status"].decode())


async def main(address: str, domain: str, path: str, ca_file: str) -> str:
    """Connect, verify the certificate, send the request and return the HTTP status."""
    # Connects to `address`, but the certificate must be valid for `domain`.
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, server_name=domain, cafile=ca_file or None)
    async with connect(address, 443, configuration=configuration, create_protocol=Client) as client:
        assert isinstance(client, Client)
        return await client.get(domain, path)


if __name__ == "__main__":
    try:
        print(asyncio.run(asyncio.wait_for(main(*sys.argv[1:5]), LIMIT_S)))
    except (TimeoutError, ConnectionError) as error:
        print(f"no answer: {type(error).__name__} {error}", file=sys.stderr)
