"""Plays the users of the service: writes of each data class in turn, and a list of those that were acknowledged.

    ip netns exec public python -m playbooks.users --address ADDRESS --domain NAME --run ID --acknowledged FILE

What is on the list was promised to a user. After a rebuild the list says what was lost, and so how far back (RPO).
"""

from __future__ import annotations

import argparse
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

INTERVAL_S = 0.25
TIMEOUT_S = 3.0
MUST_RECOVER, EVIDENCE = "must recover", "evidence"


@dataclass(frozen=True)
class Acknowledged:
    """A write that the service said is kept.

    Attributes:
        data_class: which promise it is under.
        number: counts up from 1 in each run.
        at: when the answer came, epoch seconds.
    """

    data_class: str
    number: int
    at: float


def user_name(run: str, number: int) -> str:
    """The user whose settings carry write `number`."""
    return f"rehearsal-{run}-{number}"


def write_for_ever(client: httpx.Client, run: str) -> Iterator[Acknowledged]:
    """One write each `INTERVAL_S`, alternating between the classes; yields what was acknowledged, skips what wasn't."""
    number = 0
    while True:
        number += 1
        data_class = MUST_RECOVER if number % 2 else EVIDENCE
        try:
            answer = _write(client, run, number, data_class)
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.is_success:
            yield Acknowledged(data_class, number, time.time())
        time.sleep(INTERVAL_S)


def _write(client: httpx.Client, run: str, number: int, data_class: str) -> httpx.Response:
    body: dict[str, object]
    if data_class == MUST_RECOVER:
        body = {"parking_alerts": True, "outing_alerts": False, "min_free_spaces": number % 10_000}
        return client.put(f"/api/settings/{user_name(run, number)}", json=body)
    body = {"kind": "rehearsal", "user": user_name(run, number), "payload": {"number": number}}
    return client.post("/api/events", json=body)


def client_for(address: str, domain: str, ca: str | None) -> httpx.Client:
    """A client that connects to `address` and verifies the certificate of `domain`, whatever DNS says."""
    context = ssl.create_default_context(cafile=ca)
    transport = httpx.HTTPTransport(verify=context, retries=0)
    return httpx.Client(
        base_url=f"https://{address}",
        headers={"Host": domain},
        transport=_Named(transport, domain),
        timeout=TIMEOUT_S,
        trust_env=False,
    )


class _Named(httpx.BaseTransport):
    """Sends the public name in the TLS handshake although the URL holds an address."""

    def __init__(self, inner: httpx.HTTPTransport, name: str) -> None:
        self._inner = inner
        self._name = name

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = request.extensions | {"sni_hostname": self._name}
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def read_acknowledged(path: Path) -> list[Acknowledged]:
    """The list; a line that the writer had no time to finish is left out: its write was not acknowledged to anyone."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [Acknowledged(**json.loads(line)) for line in lines]


def main() -> None:
    """Writes until it is ended."""
    parser = argparse.ArgumentParser(description="Play the users of the service.")
    for option in ("--address", "--domain", "--run", "--acknowledged"):
        parser.add_argument(option, required=True)
    parser.add_argument("--ca")
    options = parser.parse_args()
    with (
        client_for(options.address, options.domain, options.ca) as client,
        open(options.acknowledged, "a", encoding="utf-8") as file,
    ):
        for each in write_for_ever(client, options.run):
            file.write(json.dumps(asdict(each)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
