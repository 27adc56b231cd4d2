"""Generate load as users do: the writes of every service file in turn, and a list of the acknowledged ones.

    ip netns exec public python -m rehearsal.load_generator --plan FILE --address ADDRESS --run ID --acknowledged FILE

A user relies on every write in the list. After a rebuild the list shows which writes were lost (RPO).
"""

from __future__ import annotations

import argparse
import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from minipc.config.service import Request, Service
from minipc.services import requests

INTERVAL_S = 0.25
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Source:
    """One kind of write, or the reads, of a service.

    Attributes:
        service: name of the service.
        domain: its public name.
        kind: position among the writes of the service; -1 for a request that is no write into the database.
        data_class: of what is written; empty if nothing is found again by it.
    """

    service: str
    domain: str
    kind: int
    data_class: str
    request: Request


@dataclass(frozen=True)
class Write:
    """A write that the service acknowledged.

    Attributes:
        service, kind, data_class: as in `Source`.
        number: counts up from 1 in each run.
        at: when the answer arrived, epoch seconds.
    """

    service: str
    kind: int
    data_class: str
    number: int
    at: float


def sources(services: Sequence[Service]) -> list[Source]:
    """Return what users of all services do, in the order in which it is sent: writes, then reads and files."""
    found = []
    for service in services:
        if service.rehearsal is None or service.domain is None:
            continue
        rehearsal = service.rehearsal
        others = [*rehearsal.reads, *([rehearsal.files] if rehearsal.files else [])]
        writes = [(kind, each.data_class, each.request) for kind, each in enumerate(rehearsal.writes)]
        for kind, data_class, request in [*writes, *((-1, "", each) for each in others)]:
            found.append(Source(service.name, service.domain, kind, data_class, request))
    return found


def id_of(run: str, number: int) -> str:
    """Return the id that write `number` of a run contains."""
    return f"rehearsal-{run}-{number}"


def write_repeatedly(clients: Mapping[str, httpx.Client], run: str, plan: Sequence[Source]) -> Iterator[Write]:
    """Send one request per `INTERVAL_S`, each source in turn. Yields the acknowledged writes only.

    Args:
        clients: by domain. A connection is for one name: the ingress refuses another one on it.
    """
    number = 0
    while True:
        source = plan[number % len(plan)]
        number += 1
        if _send(clients[source.domain], source, id_of(run, number)) and source.kind >= 0:
            yield Write(source.service, source.kind, source.data_class, number, time.time())
        time.sleep(INTERVAL_S)


def _send(client: httpx.Client, source: Source, id_: str) -> bool:
    """Send a request; return whether it got the expected answer."""
    prepared = requests.prepare(source.request, id_)
    try:
        answer = client.request(
            prepared.method,
            prepared.path,
            content=prepared.body,
            headers=prepared.headers | {"Host": source.domain},
            extensions={"sni_hostname": source.domain},
        )
    except httpx.HTTPError:
        return False
    return not requests.problem(source.request, answer.status_code, answer.text)


def client_for(address: str, ca: str | None) -> httpx.Client:
    """Return a client that connects to `address`. The certificate must be the one of the name that is asked for."""
    context = ssl.create_default_context(cafile=ca)
    return httpx.Client(
        base_url=f"https://{address}",
        verify=context,
        timeout=TIMEOUT_S,
        trust_env=False,
    )


def read_acknowledged(path: Path) -> list[Write]:
    """Return the writes in the list, without an unfinished last line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [Write(**json.loads(line)) for line in lines]


def write_plan(path: Path, services: Sequence[Service]) -> bool:
    """Write what users do into a file for `--plan`; return False if no service says what they do."""
    plan = sources(services)
    text = json.dumps([asdict(each) | {"request": each.request.model_dump()} for each in plan])
    path.write_text(text, encoding="utf-8")
    return bool(plan)


def read_plan(path: Path) -> list[Source]:
    """Return what `write_plan` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Source(**(each | {"request": Request.model_validate(each["request"])})) for each in found]


def main() -> None:
    """Write until the process is terminated."""
    parser = argparse.ArgumentParser(description="Generate load as the users of the services do.")
    for option in ("--plan", "--address", "--run", "--acknowledged"):
        parser.add_argument(option, required=True)
    parser.add_argument("--ca")
    options = parser.parse_args()
    plan = read_plan(Path(options.plan))
    with ExitStack() as stack:
        file = stack.enter_context(open(options.acknowledged, "a", encoding="utf-8"))
        domains = {source.domain for source in plan}
        clients = {each: stack.enter_context(client_for(options.address, options.ca)) for each in domains}
        for write in write_repeatedly(clients, options.run, plan):
            file.write(json.dumps(asdict(write)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
